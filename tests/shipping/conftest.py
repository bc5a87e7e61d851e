"""The finished run and the working directory that the commands' tests have."""

from tests.commands.conftest import _cwd, made

__all__ = ["_cwd", "made"]
