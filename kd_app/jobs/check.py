"""``kd-check``: every check of a run that has not begun, and what it will cost."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_app.checks.context import CheckContext, Limits
from kd_app.checks.cost import Cost, describe_cost, estimate_cost
from kd_app.checks.dry_run import DryRun, dry_run
from kd_app.checks.finding import Finding, note, refuse
from kd_app.checks.images import check_missing_classes, check_same_image, test_too_small
from kd_app.checks.license import check_license
from kd_app.checks.loss_terms import check_loss_terms
from kd_app.checks.teacher import (
    check_chance_level,
    check_determinism,
    check_published_accuracy,
    check_random_head,
)
from kd_app.checks.teacher_input import check_teacher_input
from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.console import Console
from kd_app.run.plan import describe_models
from kd_app.run.role_jobs import draft_role_job
from kd_app.run.spec import Config, ExternalParts, build_spec
from kd_app.run.train import find_trained
from kd_app.run.workspace import Workspace
from kd_app.stages import Stages
from kd_app.tracking import Backend
from kd_app.training.distributed.launch import check_places

CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_license,
    check_missing_classes,
    check_same_image,
    test_too_small,
    check_random_head,
    check_determinism,
    check_chance_level,
    check_teacher_input,
    check_published_accuracy,
)
"""Those that need no training."""


@dataclass(frozen=True)
class CheckReport:
    """What was found, and what a run will cost; None where it could not be measured."""

    findings: tuple[Finding, ...]
    plan: tuple[str, ...] = ()
    cost: Cost | None = None

    def list_names(self, weight: str) -> list[str]:
        """The names of the refusals, warnings or notes, each once."""
        return list(
            dict.fromkeys(finding.name for finding in self.findings if finding.weight == weight)
        )


def check(
    config: Config, *, own: ExternalParts | None = None, console: Console | None = None
) -> CheckReport:
    """Look at the run that the configuration asks for, and say what was found.

    Nothing that is trained stays, and nothing is written but the scan of the images,
    which the run finds. Raises `RequestError` with every reason not to run.
    """
    console = console or Console()
    report = inspect_setup(config, own=own, console=console)
    for finding in report.findings:
        if finding.weight != "refusal":
            console.print(f"{finding.weight.capitalize()}: {finding}")
    console.print("\n".join(report.plan))
    refusals = [str(finding) for finding in report.findings if finding.weight == "refusal"]
    if refusals:
        raise RequestError(
            f"Refused for {len(refusals)} reason{'s' if len(refusals) > 1 else ''}."
            f" {' | '.join(refusals)}"
        )
    console.print("No reason was found not to run.")
    return report


def inspect_setup(
    config: Config, *, own: ExternalParts | None = None, console: Console
) -> CheckReport:
    """All findings and the plan. Raises `RequestError` where there is no run to look
    at.
    """
    limits = Limits(**config["check"])
    made = build_spec({key: value for key, value in config.items() if key != "check"}, own)
    check_places(made.trainer)
    judge = VerdictRule(**config["verdict"])
    for node in config["logger"].values():
        make(node, Backend)
    shop = Workspace(made, Stages(Path(config["stages"]), say=console.print), console, tracker=None)
    try:
        shop.prepare_data()
        shop.check_losses()
    except RequestError as error:
        return CheckReport((refuse("data", str(error)),))
    with TemporaryDirectory(prefix="kd-check-") as scratch:
        subject = CheckContext(shop, limits, judge, Path(scratch))
        found = [note("data", text) for text in shop.data.notes]
        for each in CHECKS:
            found += each(subject)
        rehearsals = _dry_run_all(subject, console)
        found += check_loss_terms(subject, rehearsals)
        plan, costs = (
            describe_models(
                shop, ready=subject.teacher is not None and subject.teacher.folder is None
            ),
            None,
        )
        if not any(seen.error for seen in rehearsals):
            costs = estimate_cost(subject, rehearsals)
            plan += describe_cost(subject, costs)
    return CheckReport(tuple(found), tuple(plan), costs)


def _dry_run_all(subject: CheckContext, console: Console) -> list[DryRun]:
    """Of all that a run would train; a teacher or control that was trained before is
    left out.
    """
    shop, seen, teacher = subject.shop, [], subject.any_teacher
    if (
        shop.spec.teacher is not None
        and subject.teacher is None
        and not subject.random_head
        and not subject.unmeasured
    ):
        console.print_transient("  teacher: a few steps ...")
        seen.append(dry_run(subject, "teacher", None))
        teacher = seen[0].created
    for role in (*shop.spec.controls, "student"):
        job = draft_role_job(shop, role)
        if role == "student" or find_trained(shop, job) is None:
            console.print_transient(f"  {role}: a few steps ...")
            seen.append(dry_run(subject, role, teacher if job.recipe.needs_teacher else None))
    return seen
