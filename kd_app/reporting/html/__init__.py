"""A report of one run or many: a page that opens anywhere, and the same figures as
JSON, CSV and Markdown.
"""

from kd_app.reporting.html.write import FILES, PAGE, write_report

__all__ = ["FILES", "PAGE", "write_report"]
