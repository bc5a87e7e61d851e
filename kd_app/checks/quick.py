"""The checks before every training of ``kd-distill``: those that take seconds."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd_app.checks.context import CheckContext, Limits
from kd_app.checks.embedding import check_teacher_embedding
from kd_app.checks.finding import Finding, combine_refusals
from kd_app.checks.images import (
    check_dominant_class,
    check_labels,
    check_missing_classes,
    check_same_image,
)
from kd_app.checks.teacher import check_chance_level
from kd_app.checks.teacher_input import check_teacher_input
from kd_app.checks.training_length import check_few_steps
from kd_app.config import RequestError
from kd_app.config.paths import read_settings
from kd_app.config.records import read_record
from kd_app.digest import round_trip_json
from kd_app.metrics.verdict import VerdictRule
from kd_app.run.forecast import Forecast
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.stages import write_atomically

Mode = Literal["refuse", "warn", "off"]

DATA_CHECKS = (
    check_same_image,
    check_labels,
    check_dominant_class,
    check_missing_classes,
    check_few_steps,
)
CHECKS_WITHOUT_LABELS = (check_same_image, check_few_steps)
TEACHER_CHECKS = (check_chance_level, check_teacher_input)
_STAGE, _FINDINGS = "check-teacher", "findings.json"
_EXPECTED = "Expected the findings about a teacher. Remove the folder of this stage to check again."
_IMAGES = 256
_SECONDS, _SHARE = 2.0, 0.02
"""The checks of a teacher may take this many seconds, or this share of the forecast."""


@dataclass(frozen=True)
class QuickChecks:
    """The checks of one run. mode: what follows from a refusal; off: nothing is
    checked.
    """

    workspace: Workspace
    rule: VerdictRule
    mode: Mode

    @classmethod
    def parse(cls, workspace: Workspace, rule: VerdictRule, mode: Mode | bool) -> "QuickChecks":
        """The checks that ``checks=`` sets. YAML reads ``on`` and ``off`` as bool."""
        if isinstance(mode, bool):
            mode = "refuse" if mode else "off"
        return cls(workspace, rule, mode)

    def check_run(self, teacher: RunModel | None, forecast: Forecast | None) -> list[str]:
        """Check the data, and a teacher that is ready (None: there is none).

        forecast: of the duration of the run, of which the checks take a small part.
        Returns the warnings. Raises `RequestError` for a refusal.
        """
        if self.mode == "off":
            return []
        seconds = max(_SECONDS, _SHARE * forecast.seconds if forecast else 0.0)
        context = CheckContext(
            self.workspace,
            read_limits(images=_IMAGES),
            self.rule,
            scratch=Path(),
            deadline=time.monotonic() + seconds,
            is_quick=True,
            known_teacher=teacher,
        )
        reads_labels = self.workspace.task.reads_labels
        checks = DATA_CHECKS if reads_labels else CHECKS_WITHOUT_LABELS
        findings = [finding for run_check in checks for finding in run_check(context)]
        if teacher is not None and not reads_labels:
            findings += check_teacher_embedding(context)
        elif teacher is not None and not context.is_unmeasured:
            findings += self._check_ready_teacher(context, teacher)
        return self._report(findings)

    def _check_ready_teacher(self, context: CheckContext, teacher: RunModel) -> list[Finding]:
        """The findings about a teacher that is ready, computed once for all runs and
        trials with the same teacher and data. Refusals are not kept: they name files.
        """
        stages = self.workspace.stages
        config = {
            "limits": vars(context.limits),
            "confidence": self.rule.confidence,
            "must_fit": context.teacher_must_fit,
            "pixels": vars(teacher.loaded.pixels),
            "limit": self.workspace.limit,
        }
        inputs = {
            "data": self.workspace.data.fingerprint,
            "teacher": teacher.loaded.weights.sha256,
        }
        key = {"config": round_trip_json(config), "inputs": inputs}
        if (stage := stages.find(_STAGE, **key)) is not None:
            return read_record(stage.path / _FINDINGS, list[Finding], expected=_EXPECTED)
        findings = [finding for run_check in TEACHER_CHECKS for finding in run_check(context)]
        if all(finding.severity != "refusal" for finding in findings):
            text = json.dumps([vars(finding) for finding in findings])
            stages.find_or_build(
                _STAGE, **key, build=lambda folder: write_atomically(folder / _FINDINGS, text)
            )
        return findings

    def check_trained_teacher(self, teacher: RunModel) -> list[str]:
        """Check a teacher that was trained in this run; returns the warnings."""
        if self.mode == "off" or teacher.no_metrics_reason:
            return []
        context = CheckContext(
            self.workspace,
            read_limits(),
            self.rule,
            scratch=Path(),
            is_quick=True,
            known_teacher=teacher,
        )
        return self._report(list(check_chance_level(context)))

    def _report(self, findings: Sequence[Finding]) -> list[str]:
        """Print the findings, refusals as warnings unless they stop the run."""
        refusals = [str(finding) for finding in findings if finding.severity == "refusal"]
        if refusals and self.mode == "refuse":
            raise RequestError(
                f"{combine_refusals(refusals)} To train nevertheless, set checks=warn."
            )
        for finding in findings:
            title = "Note" if finding.severity == "note" else "Warning"
            self.workspace.console.print(f"{title}: {finding}")
        return [str(finding) for finding in findings if finding.severity != "note"]


def read_limits(**changes: Any) -> Limits:
    """The limits of ``conf/check.yaml``, with some `changes`."""
    return Limits(**{**read_settings("check")["check"], **changes})
