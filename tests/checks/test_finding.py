"""Findings have a name, a severity and a text."""

import pytest

from kd_app.checks.finding import Finding, note, refuse, warn


@pytest.mark.parametrize(
    ("finding", "severity"),
    [
        (refuse("a-name", "A text."), "refusal"),
        (warn("a-name", "A text."), "warning"),
        (note("a-name", "A text."), "note"),
    ],
)
def test_a_finding_has_the_severity_of_its_function(finding: Finding, severity: str) -> None:
    assert (finding.name, finding.severity, finding.text) == ("a-name", severity, "A text.")
    assert str(finding) == "a-name: A text."
