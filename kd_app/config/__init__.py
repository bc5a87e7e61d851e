"""Where the configuration lies, the errors a wrong one gives, and the check of typed parts."""

from kd_app.config.errors import RequestError, RunError, closest, unknown
from kd_app.config.pixels import Pixels
from kd_app.config.typed import Typed

__all__ = ["Pixels", "RequestError", "RunError", "Typed", "closest", "unknown"]
