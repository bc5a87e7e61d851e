"""May the student be made from this teacher, these starting weights and these images?"""

from collections.abc import Iterator

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, refuse, warn
from kd_app.config import RequestError


def check_license(subject: CheckContext) -> Iterator[Finding]:
    """A license that forbids what a run would do and was not accepted; one that nobody
    knows.
    """
    licenses = subject.shop.spec.licenses
    try:
        licenses.check()
    except RequestError as error:
        yield refuse("license-forbids", str(error))
    yield from (warn("license-unknown", text) for text in licenses.unknown)
