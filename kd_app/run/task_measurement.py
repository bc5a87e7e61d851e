"""What a run measures, by its task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from kd_app.run.dark_knowledge import measure_teacher_knowledge
from kd_app.run.embedding_measurement import check_queries, measure_embeddings
from kd_app.run.measurement import format_top1, measure_models
from kd_app.run.results_builder import ResultsBuilder, SplitName
from kd_app.run.run_model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.tasks.classification import Classification
from kd_app.tasks.embedding import Embedding


class TaskMeasurement(Protocol):
    """How the models of a run are measured."""

    def check_run(self, workspace: Workspace) -> None:
        """Raise `RequestError` for a run whose result could not be measured."""

    def measure_teacher(
        self, workspace: Workspace, builder: ResultsBuilder, teacher: RunModel
    ) -> bool:
        """Measure the teacher before the student is trained. False for a teacher that
        can't be measured.
        """

    def measure(
        self,
        builder: ResultsBuilder,
        workspace: Workspace,
        models: dict[str, RunModel],
        splits: Mapping[SplitName, str],
        *,
        sweep: Path | None,
        selected: Mapping[str, RunModel],
    ) -> None:
        """Measure all models on `splits`; replace the student in `models` if another
        one ships. See `measure_models`.
        """


class ClassificationMeasurement:
    """Metrics of logits against labels and the teacher's logits."""

    def check_run(self, workspace: Workspace) -> None:
        """The division of the images has checked their classes."""

    def measure_teacher(
        self, workspace: Workspace, builder: ResultsBuilder, teacher: RunModel
    ) -> bool:
        """Measure the teacher's dark knowledge on validation."""
        name = teacher.spec.name
        if teacher.no_metrics_reason:
            note = (
                f"The teacher, {name}, {teacher.no_metrics_reason}, so the student is not compared"
                " with the teacher. The controls show how much the teacher helped."
            )
            builder.notes.append(note)
            workspace.console.print(f"Note: {note}")
            return False
        predictions = workspace.load_predictions(teacher, "validation")
        workspace.console.print(f"Teacher {name}: {format_top1(predictions)} on validation")
        builder.knowledge = measure_teacher_knowledge(workspace, predictions, "validation")
        workspace.tracker.log_knowledge(builder.knowledge.model_dump())
        return True

    def measure(
        self,
        builder: ResultsBuilder,
        workspace: Workspace,
        models: dict[str, RunModel],
        splits: Mapping[SplitName, str],
        *,
        sweep: Path | None,
        selected: Mapping[str, RunModel],
    ) -> None:
        measure_models(builder, workspace, models, splits, sweep=sweep, selected=selected)


class EmbeddingMeasurement:
    """Metrics of neighbors."""

    def check_run(self, workspace: Workspace) -> None:
        check_queries(workspace)

    def measure_teacher(
        self, workspace: Workspace, builder: ResultsBuilder, teacher: RunModel
    ) -> bool:
        """The teacher is measured with the student, by whose neighbors."""
        return True

    def measure(
        self,
        builder: ResultsBuilder,
        workspace: Workspace,
        models: dict[str, RunModel],
        splits: Mapping[SplitName, str],
        *,
        sweep: Path | None,
        selected: Mapping[str, RunModel],
    ) -> None:
        measure_embeddings(builder, workspace, models, splits, sweep=sweep)


_MEASUREMENTS: Final[Mapping[str, TaskMeasurement]] = {
    Classification.name: ClassificationMeasurement(),
    Embedding.name: EmbeddingMeasurement(),
}


def select_measurement(workspace: Workspace) -> TaskMeasurement:
    """Return how the models of a run are measured."""
    return _MEASUREMENTS[workspace.task.name]
