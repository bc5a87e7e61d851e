"""May the student be made from this teacher, these starting weights and these images?"""

from collections.abc import Iterator

from kd_app.checks.context import Subject
from kd_app.checks.finding import Finding, refusal, warn
from kd_app.config import RequestError


def licensed(subject: Subject) -> Iterator[Finding]:
    """A license that forbids what a run would do and was not accepted; one that nobody
    knows.
    """
    licenses = subject.shop.parts.licenses
    try:
        licenses.check()
    except RequestError as error:
        yield refusal("license-forbids", str(error))
    yield from (warn("license-unknown", text) for text in licenses.unknown)
