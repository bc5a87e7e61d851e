"""Checks the licenses of the teacher, the starting weights and the data."""

from collections.abc import Iterator

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, refuse, warn
from kd_app.config import RequestError


def check_license(context: CheckContext) -> Iterator[Finding]:
    """Refuse licenses that forbid the run, unless accepted; warn of unknown ones."""
    licenses = context.workspace.spec.licenses
    try:
        licenses.check()
    except RequestError as error:
        yield refuse("license-forbids", str(error))
    yield from (warn("license-unknown", text) for text in licenses.unknown)
