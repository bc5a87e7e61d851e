"""The commands: one module for each console script."""

import _signal  # type: ignore[import-not-found]  # signal imports others first
import sys

_is_script = sys.argv[0].rpartition("/")[2].startswith(("kd-", "-m"))
if _is_script and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Ctrl-C ends a console script without Python's traceback while the command is
    # imported; `kd_app.commands.app.run` then takes over.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
