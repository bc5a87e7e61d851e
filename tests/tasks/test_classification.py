"""The task of classification."""

import pytest
import torch

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs
from kd_app.tasks.build import parse_task
from kd_app.tasks.classification import CLASSIFICATION
from tests.losses.samples import batch, make


def test_every_model_has_an_output_for_each_class() -> None:
    assert {CLASSIFICATION.count_outputs(("a", "b"), role) for role in ("teacher", "student")} == {
        2
    }


def test_outputs_and_reads_stay_as_they_are() -> None:
    outputs = Outputs(logits=torch.ones(1, 2))
    assert CLASSIFICATION.map_outputs(outputs) is outputs
    assert CLASSIFICATION.map_reads(frozenset({"embedding"})) == {"embedding"}
    assert CLASSIFICATION.describe_identity() == CLASSIFICATION.describe_model() == {}


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(RequestError, match="is 2, but there are 2 classes"):
        CLASSIFICATION.check_batch(batch(torch.tensor([0, 2])), 2)


def test_every_loss_term_suits_it() -> None:
    CLASSIFICATION.check_loss({"cross_entropy": make("cross_entropy")}, "student")


def test_metrics_are_those_of_logits_labels_and_the_teacher() -> None:
    metrics, pair = CLASSIFICATION.build_metrics(2), CLASSIFICATION.build_pair_metrics()
    output = torch.tensor([[2.0, 0.0], [2.0, 0.0]])

    class Reference:
        def select(self, index: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[3.0, 0.0], [0.0, 3.0]])

    CLASSIFICATION.update_metrics(metrics, pair, output, batch(torch.tensor([0, 1])), Reference())
    assert float(metrics.compute()["top1"]) == 0.5
    assert float(pair.compute()["agreement"]) == 0.5


def test_it_is_read_back() -> None:
    assert parse_task(CLASSIFICATION.to_json()) == CLASSIFICATION
