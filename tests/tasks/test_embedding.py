"""The task of embedding."""

import numpy as np
import pytest
import torch

from kd_app.config import RequestError
from kd_app.metrics.neighbors import compute_overlap, find_neighbors
from kd_app.models.outputs import EnsembleOutputs, Outputs
from kd_app.models.spec import ModelSpec
from kd_app.tasks.build import parse_task
from kd_app.tasks.embedding import Embedding
from tests.losses.samples import TERMS, batch, class_of, make, normal

TASK = Embedding(k=3).bind_teacher(7)


def _name_model(role: str) -> ModelSpec:
    return ModelSpec(
        role=role,
        name="resnet10t",
        pretrained=False,
        checkpoint=None,
        kwargs={},
        image_size=None,
        factory=None,
    )


def test_a_trained_student_is_as_wide_as_the_teacher_and_others_have_no_head() -> None:
    roles = ("teacher", "untouched", "random", "student", "link-1")
    assert [TASK.count_outputs((), role) for role in roles] == [0, 0, 0, 7, 7]


def test_the_embedding_is_the_output() -> None:
    outputs = TASK.map_outputs(Outputs(logits=torch.ones(2, 7)))
    assert outputs.embedding is outputs.logits
    assert TASK.map_reads(frozenset({"embedding", "features"})) == {"logits", "features"}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_refused_if_it_reads_labels_logits_or_a_classifier(name: str) -> None:
    term = make(name)
    fields = (term.reads | term.teacher_reads) & {"logits", "classifier"}
    if not fields and not class_of(name).uses_labels:
        TASK.check_loss({name: term}, "student")
        return
    with pytest.raises(RequestError, match=f"{name} of the student reads .*embedding_cosine"):
        TASK.check_loss({name: term}, "student")


def test_a_teacher_with_random_weights_is_refused() -> None:
    with pytest.raises(RequestError, match=r"resnet10t has random weights.*teacher\.name="):
        TASK.bind_model(_name_model("teacher"), ())


def test_a_student_gets_a_projector() -> None:
    student = _name_model("student")
    TASK.bind_model(student, ())
    assert student.match is not None
    assert not student.match.fits


def test_validation_compares_neighbors_and_directions() -> None:
    student, teacher = normal(12, 7, seed=0), normal(12, 7, seed=1)
    images = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    class Reference:
        def select(self, index: torch.Tensor) -> torch.Tensor:
            return teacher[index].float()

    metrics = TASK.build_metrics(7)
    for rows in images.split(5):
        part = batch(torch.full((len(rows),), -1))
        part.index = rows
        TASK.update_metrics(metrics, None, student[rows].float(), part, Reference())
    values = metrics.compute()
    ours, theirs = (
        find_neighbors(each.numpy(), each.numpy(), 3, is_same=True).rows
        for each in (student, teacher)
    )
    s, t = (each - each.mean(0) for each in (student, teacher))
    cosine = (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))
    assert float(values["overlap"]) == pytest.approx(compute_overlap(ours, theirs).mean())
    assert float(values["distance"]) == pytest.approx(1 - float(cosine.mean()), abs=1e-6)
    assert float(values["effective_rank"]) > 1


def test_images_without_an_output_of_the_teacher_are_left_out() -> None:
    metrics = TASK.build_metrics(7)
    teacher = normal(6, 7, seed=1).float()
    teacher[2:] = torch.nan
    metrics.update(normal(6, 7, seed=0).float(), teacher, torch.arange(6), torch.full((6,), -1))
    values = metrics.compute()
    assert np.isnan(float(values["overlap"]))
    assert np.isfinite(float(values["distance"]))


def test_the_members_of_a_teacher_give_their_embeddings() -> None:
    members = {"a": Outputs(logits=torch.ones(2, 3))}
    outputs = TASK.map_outputs(EnsembleOutputs(logits=torch.zeros(2, 5), members=members))
    assert isinstance(outputs, EnsembleOutputs)
    assert outputs.embedding is not None
    assert outputs.embedding.shape == (2, 5)
    assert outputs.members["a"].embedding is members["a"].logits


def test_it_is_read_back() -> None:
    assert parse_task(TASK.to_json()) == TASK
    assert TASK.describe_identity()["task"]["k"] == 3
