"""Report of one or several runs: an HTML page without external resources, and the same
numbers as JSON, CSV and Markdown.
"""

from kd_app.reporting.html.write import FILES, PAGE, check_owner, write_report

__all__ = ["FILES", "PAGE", "check_owner", "write_report"]
