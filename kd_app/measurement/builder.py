"""Builder of ``results.json``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kd_app.config import RequestError
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import Judgment, VerdictRule
from kd_app.reporting.card import write_card
from kd_app.reporting.cascade_results import CascadeRecord
from kd_app.reporting.cautions import describe_cautions
from kd_app.reporting.embedding_results import EmbeddingRecord
from kd_app.reporting.knowledge_results import Knowledge
from kd_app.reporting.metrics import Split
from kd_app.reporting.metrics import Verdict as VerdictPart
from kd_app.reporting.results import (
    CompressionStep,
    Data,
    ImageStatistics,
    LicenseRecord,
    ModelRecord,
    Results,
    Speed,
    StageRecord,
    TeacherLabels,
    read,
    write,
)
from kd_app.run.environment import describe_environment
from kd_app.run.output import list_files
from kd_app.run_files import RESULTS, STUDENT
from kd_app.stages import Stage
from kd_app.training.trainer import TrainerSettings

SplitName = Literal["validation", "test"]
Status = Literal["running", "finished", "failed", "pruned"]


class ResultsBuilder:
    """Collects the parts of a run's results as they become available.

    rule: judges the student. stages: the list to which the run appends each stage that
    it uses. The results.json of an earlier attempt in `out` records which of these
    stages the run itself computed.
    """

    def __init__(
        self,
        out: Path,
        rule: VerdictRule,
        *,
        config: Mapping[str, Any],
        trainer: TrainerSettings,
        license: LicenseRecord | None,
        stages: Sequence[Stage],
    ) -> None:
        self.out = out
        self.rule = rule
        self.config = config
        self.license = license
        self.data: Data | None = None
        self.teacher_labels: TeacherLabels | None = None
        self.image_stats: ImageStatistics | None = None
        self.models: dict[str, ModelRecord] = {}
        self.splits: dict[SplitName, Split] = {}
        self.verdict: VerdictPart | None = None
        self.knowledge: Knowledge | None = None
        self.speed = Speed()
        self.steps: list[CompressionStep] = []
        self.cascade: CascadeRecord | None = None
        self.embedding: EmbeddingRecord | None = None
        self.notes: list[str] = []
        self._trainer = trainer
        self._stages = stages
        self._computed_before = _read_computed_stages(out / RESULTS)

    def add_data(self, data: Data, notes: Sequence[str] = ()) -> None:
        """Set the data, and put their `notes` before all other notes."""
        self.data = data
        self.notes = [*notes, *self.notes]

    def add_split_metrics(
        self,
        split: SplitName,
        predictions: Mapping[str, Predictions],
        groups: Sequence[str] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Compare the student with the other models on the images of a split. name: of
        the split in the data, if it is another one.

        With a teacher, also judge the student; the split added last has the verdict.
        """
        metrics = measure_split(predictions, seed=0, confidence=self.rule.confidence, group=groups)
        other_name = None if name == split else name
        self.splits[split] = Split.model_validate({**metrics, "split": other_name})
        student, teacher = predictions["student"], predictions.get("teacher")
        if teacher is not None:
            self.set_verdict(self.rule.judge(student, teacher), name or split)

    def set_verdict(self, judgment: Judgment, split: str) -> None:
        """Set the verdict on `split`."""
        self.verdict = VerdictPart(**vars(judgment), split=split)

    def build(self, status: Status, reason: str | None = None) -> Results:
        """The results as far as they are available."""
        split: SplitName = "test" if "test" in self.splits else "validation"
        return Results(
            status=status,
            reason=reason,
            seed=self.config["seed"],
            config=dict(self.config),
            environment=describe_environment(self._trainer),
            data=self.data,
            image_stats=self.image_stats,
            license=self.license,
            models=self.models,
            validation=self.splits.get("validation"),
            test=self.splits.get("test"),
            verdict=self.verdict,
            knowledge=self.knowledge,
            speed=self.speed,
            steps=self.steps,
            cascade=self.cascade,
            embedding=self.embedding,
            stages=[self._record(stage) for stage in self._stages],
            cautions=describe_cautions(self.data, self.splits.get(split), split),
            notes=self.notes,
        )

    def write(self, status: Status, reason: str | None = None) -> Results:
        """Write results.json; for a finished run also the student's model card, and the
        hashes of all files.
        """
        results = self.build(status, reason)
        if status == "finished":
            if (self.out / STUDENT).is_dir():
                write_card(self.out / STUDENT, results)
            results.files = list_files(self.out)
        write(self.out / RESULTS, results)
        return results

    def _record(self, stage: Stage) -> StageRecord:
        # A stage that an earlier attempt at this run computed counts as computed.
        computed = stage.is_new or str(stage.path) in self._computed_before
        return StageRecord(
            name=stage.name,
            path=str(stage.path),
            seconds=stage.seconds,
            status="computed" if computed else "reused",
        )


def _read_computed_stages(path: Path) -> frozenset[str]:
    """The folders of the stages that earlier attempts at the run computed."""
    try:
        return frozenset(stage.path for stage in read(path).stages if stage.status == "computed")
    except RequestError:
        return frozenset()
