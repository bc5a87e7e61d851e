"""Console output of a command while it runs."""

import shutil
import sys

from kd_app.config.escape import escape_controls


class Console:
    """Prints lines that stay, and transient lines that the next line replaces.

    Without a terminal a transient line stays, too.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.live = sys.stdout.isatty() and not silent
        self.silent = silent
        self._transient_width = 0

    def print(self, text: str = "") -> None:
        """Print a line that stays."""
        if not self.silent:
            self._clear()
            print(escape_controls(text), flush=True)

    def print_transient(self, text: str) -> None:
        """Print a line that the next one replaces."""
        if self.silent:
            return
        text = escape_controls(text)
        if not self.live:
            print(text, flush=True)
            return
        self._clear()
        line = text[: shutil.get_terminal_size().columns - 1]
        print(line, end="", flush=True)
        self._transient_width = len(line)

    def show(self, renderable: object) -> None:
        """Print a table or another renderable of rich."""
        from rich.console import Console as RichConsole

        if self.silent:
            return
        self._clear()
        width = max(shutil.get_terminal_size((100, 24)).columns, 80)
        RichConsole(width=width, highlight=False).print(renderable)

    def _clear(self) -> None:
        if self._transient_width:
            print("\r" + " " * self._transient_width + "\r", end="")
            self._transient_width = 0
