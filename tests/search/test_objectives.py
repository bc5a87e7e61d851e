"""What a search may rank its trials by."""

import pytest

from kd_app.config import RequestError
from kd_app.search.objectives import check_objectives, check_values, read_objectives
from tests.reporting.run_folders import build_results

PLAIN = build_results()
FAILED = PLAIN.model_copy(update={"status": "failed"})


@pytest.mark.parametrize(
    ("task", "key", "words"),
    [
        ("embedding", "validation.student.top1", "only a trial with task=classification"),
        ("classification", "embedding.validation.models.student.cka", "these have task=cl"),
        ("embedding", "embedding.validation.models.student.top9", "no such key"),
        ("classification", "models.student.size", "no such key"),
    ],
)
def test_an_objective_that_no_trial_has_is_refused(task: str, key: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_objectives([key], task)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("classification", "validation.student.nll"),
        ("embedding", "embedding.validation.models.student.purity.value"),
        ("embedding", "models.student.macs"),
        ("embedding", "selection"),
        ("classification", "config.optimizer.lr"),
    ],
)
def test_an_objective_that_a_trial_may_have_is_accepted(task: str, key: str) -> None:
    check_objectives([key], task)


@pytest.mark.parametrize("key", ["cascade.name", "status", "verdict.test"])
def test_an_objective_without_a_number_in_any_trial_ends_the_search(key: str) -> None:
    goals = {"selection": "maximize", key: "maximize"}
    assert read_objectives(PLAIN, goals) is None
    with pytest.raises(RequestError, match=rf"ranks by {key}, and no finished trial"):
        check_values([None, FAILED, PLAIN], goals)


def test_a_trial_without_a_value_does_not_end_the_search() -> None:
    other = PLAIN.model_copy(update={"validation": None})
    assert read_objectives(other, {"selection": "maximize"}) is None
    check_values([other, PLAIN], ["selection"])
    check_values([FAILED, None], ["status"])  # none is finished
