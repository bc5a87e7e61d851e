"""The job of ``kd-check``: every check of a run before its start, and its cost."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kd_app.checks.context import CheckContext, Limits
from kd_app.checks.cost import Cost, describe_cost, estimate_cost
from kd_app.checks.dry_run import DryRun, train_briefly
from kd_app.checks.embedding import (
    check_num_queries,
    check_teacher_embedding,
    check_teacher_pixels,
)
from kd_app.checks.finding import Finding, combine_refusals, note, refuse, warn
from kd_app.checks.images import check_test_size
from kd_app.checks.license import check_license
from kd_app.checks.loss_terms import check_loss_terms
from kd_app.checks.quick import CHECKS_WITHOUT_LABELS, DATA_CHECKS, TEACHER_CHECKS
from kd_app.checks.teacher import (
    check_determinism,
    check_published_accuracy,
    check_random_head,
)
from kd_app.config import RequestError, Typed
from kd_app.config.make import make
from kd_app.measurement.task_measurement import select_measurement
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.console import Console
from kd_app.run.folder import check_stages
from kd_app.run.length import list_length_notes
from kd_app.run.plan import describe_forecast, describe_models
from kd_app.run.pseudo_labels import check_images_to_label
from kd_app.run.refit import is_refit_due
from kd_app.run.role_jobs import check_batches, draft_role_job
from kd_app.run.train import find_trained
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import Config, ExternalParts, build_spec
from kd_app.stages import Stages
from kd_app.tracking import Backend
from kd_app.training.launch import check_places


class CheckSettings(Typed, called="kd-check"):
    """The setting of ``conf/check.yaml`` that ``conf/distill.yaml`` does not have."""

    def __init__(self, *, check: dict[str, Any]) -> None:
        self.check = check


CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_license,
    *DATA_CHECKS,
    check_test_size,
    check_random_head,
    check_determinism,
    *TEACHER_CHECKS,
    check_published_accuracy,
)
"""The checks that need no training."""
CHECKS_OF_EMBEDDINGS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_license,
    *CHECKS_WITHOUT_LABELS,
    check_num_queries,
    check_teacher_embedding,
    check_teacher_pixels,
)
"""Those of a run whose models read no labels."""


@dataclass(frozen=True)
class CheckReport:
    """All findings, the plan of the run, and its cost (None if a dry run failed)."""

    findings: tuple[Finding, ...]
    plan: tuple[str, ...] = ()
    cost: Cost | None = None

    def list_names(self, severity: str) -> list[str]:
        """Names of the findings of one severity, without repetitions."""
        names = [finding.name for finding in self.findings if finding.severity == severity]
        return list(dict.fromkeys(names))


def check(
    config: Config, *, own: ExternalParts | None = None, console: Console | None = None
) -> CheckReport:
    """Check the run that `config` describes, and print the findings.

    Only the scan of the images, and what several teachers are scaled by, stay on disk,
    for the run to reuse. Raises
    `RequestError` with all refusals.
    """
    console = console or Console()
    report = inspect_setup(config, own=own, console=console)
    for finding in report.findings:
        if finding.severity != "refusal":
            console.print(f"{finding.severity.capitalize()}: {finding}")
    console.print("\n".join(report.plan))
    refusals = [str(finding) for finding in report.findings if finding.severity == "refusal"]
    if refusals:
        raise RequestError(combine_refusals(refusals))
    console.print("No reason was found not to run.")
    return report


def _open_scratch(stages: Path) -> "TemporaryDirectory[str]":
    """A folder beside the stages, where leftovers of killed processes are removed, or
    among the temporary files of the system if there are none or another user's.
    """
    is_ours = os.access(stages, os.W_OK | os.X_OK)
    return TemporaryDirectory(prefix=".check-", suffix=".partial", dir=stages if is_ours else None)


def inspect_setup(
    config: Config, *, own: ExternalParts | None = None, console: Console
) -> CheckReport:
    """Collect all findings and the plan. Raises `RequestError` for a wrong config."""
    limits = Limits(**CheckSettings(check=config["check"]).check)
    spec = build_spec({key: value for key, value in config.items() if key != "check"}, own)
    check_places(spec.trainer)
    is_refit_due(config, trial=None, is_winner=False)
    rule = VerdictRule(**config["verdict"])
    for node in config["logger"].values():
        make(node, Backend)
    check_stages(Path(config["stages"]))
    stages = Stages(Path(config["stages"]), say=console.print)
    workspace = Workspace(spec, stages, console, tracker=None)
    try:
        workspace.prepare_data()
        void_parts = workspace.check_losses()
        check_images_to_label(workspace)
        select_measurement(workspace).check_run(workspace)
    except RequestError as error:
        return CheckReport((refuse("data", str(error)),))
    start = time.monotonic()
    with _open_scratch(stages.root) as scratch:
        context = CheckContext(workspace, limits, rule, Path(scratch))
        is_ready = context.is_ready
        forecast = context.forecast
        context.deadline = start + limits.choose_seconds(forecast)
        findings = [note("data", text) for text in workspace.data.notes]
        findings += [note("length", text) for text in list_length_notes(workspace)]
        findings += [warn("term-void", text) for text in void_parts]
        try:
            check_batches(workspace, ready=is_ready)
        except RequestError as error:
            findings.append(refuse("single-image", str(error)))
        findings += _run_checks(context, console)
        dry_runs, skipped = _train_all_briefly(context, console)
        findings += check_loss_terms(context, dry_runs)
        plan = describe_models(workspace, ready=is_ready)
        cost = None
        if skipped:
            findings.append(_build_time_note(skipped))
            plan.append(f"Time: {describe_forecast(forecast)}" if forecast else "Time: unknown")
        elif not any(result.error for result in dry_runs):
            cost = estimate_cost(context, dry_runs)
            plan += describe_cost(context, cost)
    return CheckReport(tuple(findings), tuple(plan), cost)


def _run_checks(context: CheckContext, console: Console) -> list[Finding]:
    """The findings of all checks for which there is time."""
    findings: list[Finding] = []
    skipped = []
    checks = CHECKS if context.workspace.task.reads_labels else CHECKS_OF_EMBEDDINGS
    for number, run_check in enumerate(checks, start=1):
        name = run_check.__name__.removeprefix("check_").replace("_", " ")
        if context.seconds_left == 0:
            skipped.append(name)
            continue
        console.print_transient(f"  check {number} of {len(checks)}: {name} ...")
        findings += run_check(context)
    return [*findings, *([_build_time_note(skipped)] if skipped else [])]


def _build_time_note(skipped: Sequence[str]) -> Finding:
    return note(
        "no-time",
        f"The time for the checks is over, so these were left out: {', '.join(skipped)}. To include"
        " them, raise check.minutes.",
    )


def _train_all_briefly(context: CheckContext, console: Console) -> tuple[list[DryRun], list[str]]:
    """Dry runs of all models that the run would train, and the names of those for which
    there is no time; the student is always trained. A teacher or control that an
    earlier run trained is left out.
    """
    workspace, teacher = context.workspace, context.any_teacher
    roles = ["teacher"] if context.must_train_teacher else []
    roles += [
        role
        for role in workspace.spec.controls
        if find_trained(workspace, draft_role_job(workspace, role)) is None
    ]
    results, skipped = [], []
    for number, role in enumerate([*roles, "student"]):
        left = len(roles) + 1 - number
        if role != "student" and context.seconds_left == 0:
            skipped.append(f"the short training of {role}")
            continue
        console.print_transient(f"  short training of {role}: a few steps ...")
        needs_teacher = role != "teacher" and draft_role_job(workspace, role).recipe.needs_teacher
        results.append(
            train_briefly(context, role, teacher if needs_teacher else None, share=1 / left)
        )
        if role == "teacher":
            teacher = results[0].loaded
    return results, skipped
