"""What a person sees while something long goes on."""

import shutil
import sys


class Console:
    """Lines of text: `say` for what stays, `line` for what is replaced by the next (on
    a terminal; elsewhere it is a line like any other).
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.live = sys.stdout.isatty() and not silent
        self.silent = silent
        self._open = 0

    def print(self, text: str = "") -> None:
        """Print a line that stays."""
        if not self.silent:
            self._clear()
            print(text, flush=True)

    def print_transient(self, text: str) -> None:
        """Print a line that the next one replaces."""
        if self.silent:
            return
        if not self.live:
            print(text, flush=True)
            return
        self._clear()
        shown = text[: shutil.get_terminal_size().columns - 1]
        print(shown, end="", flush=True)
        self._open = len(shown)

    def show(self, renderable: object) -> None:
        """Print a table or another renderable of rich."""
        from rich.console import Console as Rich

        if not self.silent:
            self._clear()
            Rich(width=max(shutil.get_terminal_size((100, 24)).columns, 80), highlight=False).print(
                renderable
            )

    def _clear(self) -> None:
        if self._open:
            print("\r" + " " * self._open + "\r", end="")
            self._open = 0
