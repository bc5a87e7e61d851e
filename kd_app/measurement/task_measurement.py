"""What a run measures, by its task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kd_app.measurement.builder import ResultsBuilder, SplitName
from kd_app.measurement.classification import measure_models
from kd_app.measurement.dark_knowledge import measure_teacher_knowledge
from kd_app.measurement.embedding import check_queries, measure_embeddings
from kd_app.measurement.embedding_evaluation import measure_embeddings_again
from kd_app.reporting.results import Results
from kd_app.reporting.top1 import format_top1
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.tasks.classification import Classification
from kd_app.tasks.embedding import Embedding


class SplitMeasurement(Protocol):
    """Measures all models on `splits`; replaces the student in `models` if another one
    ships. See `measure_models`.
    """

    def __call__(
        self,
        builder: ResultsBuilder,
        workspace: Workspace,
        models: dict[str, RunModel],
        splits: Mapping[SplitName, str],
        *,
        sweep: Path | None,
        selected: Mapping[str, RunModel],
    ) -> None: ...


class RepeatedMeasurement(Protocol):
    """Measures the models of a finished run once more, on one split.

    before: the results of the run. is_own: the images are those of the run.
    """

    def __call__(
        self,
        builder: ResultsBuilder,
        workspace: Workspace,
        models: Mapping[str, RunModel],
        split: str,
        *,
        before: Results,
        is_own: bool,
    ) -> None: ...


@dataclass(frozen=True)
class TaskMeasurement:
    """How the models of a run are measured.

    measure_teacher: measures the teacher before the student is trained; False for a
    teacher that can't be measured. check_run: raises `RequestError` for a run whose
    result could not be measured.
    """

    measure: SplitMeasurement
    measure_again: RepeatedMeasurement
    measure_teacher: Callable[[Workspace, ResultsBuilder, RunModel], bool]
    check_run: Callable[[Workspace], None]


def measure_classifiers_again(
    builder: ResultsBuilder,
    workspace: Workspace,
    models: Mapping[str, RunModel],
    split: str,
    *,
    before: Results,
    is_own: bool,
) -> None:
    """Measure a finished run's models against the labels of a split."""
    measure_models(builder, workspace, models, {"test": split}, before=before)


def measure_teacher_on_labels(
    workspace: Workspace, builder: ResultsBuilder, teacher: RunModel
) -> bool:
    """Measure the teacher's dark knowledge on validation. False for a teacher that
    can't be measured.
    """
    name = teacher.spec.name
    if teacher.no_metrics_reason:
        note = (
            f"The teacher, {name}, {teacher.no_metrics_reason}, so the student is not compared with"
            " the teacher. The controls show how much the teacher helped."
        )
        builder.notes.append(note)
        workspace.console.print(f"Note: {note}")
        return False
    predictions = workspace.load_predictions(teacher, "validation")
    workspace.console.print(f"Teacher {name}: {format_top1(predictions)} on validation")
    builder.knowledge = measure_teacher_knowledge(workspace, predictions, "validation")
    workspace.tracker.log_knowledge(builder.knowledge.model_dump())
    return True


_MEASUREMENTS: Final[Mapping[str, TaskMeasurement]] = {
    # the division of the images has checked their classes
    Classification.name: TaskMeasurement(
        measure_models, measure_classifiers_again, measure_teacher_on_labels, lambda workspace: None
    ),
    # the teacher is measured with the student, by whose neighbors
    Embedding.name: TaskMeasurement(
        measure_embeddings,
        measure_embeddings_again,
        lambda workspace, builder, teacher: True,
        check_queries,
    ),
}


def select_measurement(workspace: Workspace) -> TaskMeasurement:
    """Return how the models of a run are measured."""
    return _MEASUREMENTS[workspace.task.name]
