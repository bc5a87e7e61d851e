"""Terms that teach nothing, or leave the others nothing to teach, and students that
learn nothing.
"""

from pathlib import Path

import pytest

from tests.checks.planted import HERE, fitted, report, subject


def planted(fault: str, weight: float = 1.0) -> tuple[str, ...]:
    return (
        "allow=[tests]",
        f"+loss.planted._target_={HERE}.Planted",
        f"+loss.planted.fault={fault}",
        f"+loss.planted.weight={weight}",
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (planted("zero"), "term-zero"),
        (planted("no-gradient"), "term-no-gradient"),
        (planted("infinite"), "term-not-finite"),
        ((*planted("half"), "trainer.precision=bf16-mixed"), "term-not-finite"),
        (("loss.soft_target.weight=0",), "term-zero"),
    ],
    ids=["zero", "no gradient", "infinite", "infinite in bf16", "weight 0"],
)
def test_a_term_that_teaches_nothing_is_refused(
    words: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    found = report(tmp_path, *words, teacher=fitted(subject(tmp_path)))
    assert found.list_names("refusal") == [name]


def test_the_same_term_is_fine_in_full_precision(tmp_path: Path) -> None:
    found = report(tmp_path, *planted("half", weight=1e-6), teacher=fitted(subject(tmp_path)))
    assert found.list_names("refusal") == []


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    second = [
        (
            word.replace("planted", "other")
            if "_target_" not in word
            else word.replace("loss.planted", "loss.other")
        )
        for word in planted("zero")
    ]
    found = report(tmp_path, *planted("infinite"), *second[1:], teacher=fitted(subject(tmp_path)))
    assert set(found.list_names("refusal")) == {"term-not-finite", "term-zero"}


def test_a_term_with_nearly_all_of_the_gradient_is_warned_of(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        "loss.soft_target.weight=10000",
        "verdict.margin=0.1",
        teacher=fitted(subject(tmp_path)),
    )
    assert found.list_names("warning") == ["term-dominates"]
    assert "The loss term soft_target has 100.0%" in next(
        finding.text for finding in found.findings if finding.name == "term-dominates"
    )


def test_a_student_that_does_not_learn_is_warned_of(tmp_path: Path) -> None:
    found = report(
        tmp_path, "optimizer.lr=1e-12", "verdict.margin=0.1", teacher=fitted(subject(tmp_path))
    )
    assert found.list_names("warning") == ["learns-nothing"]
