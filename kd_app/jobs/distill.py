"""The job of ``kd-distill``: trains and measures teacher, controls and student."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kd_app.checks.quick import QuickChecks
from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.config.memory import explain_memory_error
from kd_app.config.redact import redact
from kd_app.digest import hash_file
from kd_app.measurement.builder import ResultsBuilder, SplitName
from kd_app.measurement.classification import name_data, start_results
from kd_app.measurement.task_measurement import select_measurement
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.accuracy_plot import draw_accuracies
from kd_app.reporting.console import Console
from kd_app.reporting.html import PAGE, write_report
from kd_app.reporting.results import FileRecord, Results, read
from kd_app.reporting.runs import write_curves
from kd_app.reporting.tables import build_summary
from kd_app.run.assistants import train_assistants
from kd_app.run.folder import build_run_name, check_out, check_stages, claim_folder
from kd_app.run.forecast import forecast_run
from kd_app.run.initial_models import build_initial_models
from kd_app.run.inputs import RunInputs
from kd_app.run.latency_check import check_latency
from kd_app.run.length import list_length_notes
from kd_app.run.model import RunModel
from kd_app.run.output import list_uploads, write_models
from kd_app.run.plan import write_plan
from kd_app.run.pseudo_labels import check_images_to_label
from kd_app.run.refit import is_refit_due, train_again
from kd_app.run.role_jobs import (
    build_control_job,
    build_student_job,
    build_teacher_job,
    check_batches,
    check_pair,
    note_class_weights,
)
from kd_app.run.teacher_labels import find_teacher_labels
from kd_app.run.train import Listeners, train
from kd_app.run.workspace import Workspace
from kd_app.run_files import CONFIG, CURVES, RESULTS, SPLIT
from kd_app.search.pruning import MedianPruner, TrialPruned
from kd_app.specs.spec import Config, ExternalParts, RunSpec, build_spec
from kd_app.specs.task_choice import resolve_task
from kd_app.stages import Stages
from kd_app.tracking import Backend, Tracker
from kd_app.tracking.report import name_run
from kd_app.training.job import TrainingJob
from kd_app.training.launch import check_places


def distill(
    config: Config,
    *,
    own: ExternalParts | None = None,
    console: Console | None = None,
    trial: int | None = None,
    is_winner: bool = False,
) -> Path:
    """Start the run that `config` describes, resume it, or reuse its results; returns
    the run's folder.

    In a sweep, `trial` is the number of the run: its folder is ``out/<trial>``, and
    only the winner reads the test set. is_winner: the trial is the best of its sweep on
    validation. Raises `RequestError` before anything is read or
    written if the request is wrong, and `RunError` if the run fails.
    """
    console = console or Console()
    config = resolve_task(config).config
    spec = _build_spec({**config, "tags": redact(config["tags"])}, own, trial)
    config = spec.config
    out = _name_folder(config, trial)
    spec.licenses.check()
    check_places(spec.trainer)
    has_refit = is_refit_due(config, trial=trial, is_winner=is_winner)
    rule = VerdictRule(**config["verdict"])
    backends = {name: make(node, Backend) for name, node in config["logger"].items()}
    external = sorted(name for name, part in vars(spec.external).items() if part is not None)
    splits = select_splits(config, trial)
    check_out(out, Path(config["stages"]))
    with claim_folder(out, {**config, "own": external}, overwrite=config["overwrite"]):
        inputs = RunInputs(out, config, spec.data)
        if not config["overwrite"] and (out / RESULTS).is_file():
            inputs.check(_read_results(out, console), console)
        results = None if config["remake"] else find_results(out, spec, splits, console)
        if results is not None:
            console.print(
                f"{out} holds this run, finished. To rebuild a stage, set remake=[student]; to"
                " start afresh, set overwrite=true."
            )
            console.show(build_summary(results))
            return out
        check_stages(Path(config["stages"]))
        tracker = _open_tracker(backends, spec, out, console, trial)
        pruner = None
        if config["trial_pruning"] and trial is not None:
            pruner = MedianPruner(out.parent, trial)
        stages = Stages(Path(config["stages"]), remake=config["remake"], say=console.print)
        workspace = Workspace(spec, stages, console, tracker)
        builder = start_results(workspace, out, rule)
        checks = QuickChecks.parse(workspace, rule, config["checks"])
        with tracker.close_at_exit(), workspace.keep_work():
            _run(
                workspace,
                builder,
                splits,
                checks,
                inputs,
                pruner=pruner,
                trial=trial,
                has_refit=has_refit,
            )
    return out


def _build_spec(config: Config, own: ExternalParts | None, trial: int | None) -> RunSpec:
    """The specification of the run. An error for a finished run, such as a file that is
    not there any more, also states that the results were kept.
    """
    try:
        return build_spec(config, own)
    except RequestError as error:
        out = _name_folder(config, trial)
        results = None if config["overwrite"] is True else _read_results(out)
        if results is None or results.status != "finished":
            raise
        raise RequestError(
            f"{error} {str(out)!r} holds a finished run, and its results were kept."
        ) from None


def _read_results(out: Path, console: Console | None = None) -> Results | None:
    """The results of an earlier attempt; None if they are missing or, which the console
    prints, damaged.
    """
    try:
        return read(out / RESULTS) if (out / RESULTS).is_file() else None
    except RequestError as error:
        if console is not None:
            console.print(f"Note: {error} This command writes it anew.")
        return None


def _name_folder(config: Config, trial: int | None) -> Path:
    out = Path(config["out"] or Path("runs") / build_run_name(config))
    return out if trial is None else out / str(trial)


def select_splits(config: Config, trial: int | None) -> dict[SplitName, str]:
    """The splits to measure. With ``test=auto``, a trial of a sweep leaves test out."""
    splits: dict[SplitName, str] = {"validation": "validation"}
    if config["test"] == "always" or (config["test"] == "auto" and trial is None):
        splits["test"] = "test"
    return splits


def _open_tracker(
    backends: Mapping[str, Backend], spec: RunSpec, out: Path, console: Console, trial: int | None
) -> Tracker:
    """A tracker with the run's configuration and the licenses that follow from it."""
    group, name = name_run(out, trial=trial is not None)
    license = {**spec.config["license"], **spec.licenses.to_record()}
    return Tracker(
        backends,
        out=out,
        name=name,
        group=group,
        tags=spec.config["tags"],
        config={**spec.config, "license": license},
        skip_reused=trial is not None,
        say=console.print,
    )


def find_results(
    out: Path, spec: RunSpec, splits: Mapping[SplitName, str], console: Console
) -> Results | None:
    """The results in `out`, if they can be reused: those of a finished run with the
    same licenses and all requested measurements, or those of a pruned trial that may
    stay pruned.
    """
    results = _read_results(out)
    if results is None:
        return None
    config = spec.config
    if results.status == "pruned":
        may_be_pruned = config["trial_pruning"] is not None or config["budget"] is not None
        has_same_budget = results.config.get("budget") == config["budget"]
        return results if may_be_pruned and has_same_budget else None
    # The configuration was compared before this command wrote its own.
    files = (file for file in results.files if file.name != CONFIG)
    damaged = next((file.name for file in files if not _is_intact(out, file)), None)
    if damaged:
        console.print(f"{out / damaged} has changed since this run wrote it; it is rewritten")
        return None
    has_license = results.license is not None and (
        results.license.model_dump() == spec.licenses.to_record()
    )
    is_reusable = results.status == "finished" and has_license
    return results if is_reusable and _is_complete(results, config, splits) else None


def _is_complete(results: Results, config: Config, splits: Mapping[SplitName, str]) -> bool:
    """Whether the results hold all requested measurements."""
    measured = results.embedding or results
    has_test = measured.test is not None or "test" not in splits
    has_examples = results.config.get("examples", config["examples"]) == config["examples"]
    has_robustness = (
        not config["robustness"]["corruptions"]
        or results.config.get("robustness") == config["robustness"]
    )
    return has_test and has_examples and has_robustness


def _is_intact(out: Path, file: FileRecord) -> bool:
    path = out / file.name
    return path.is_file() and hash_file(path) == file.sha256


def _run(
    workspace: Workspace,
    builder: ResultsBuilder,
    splits: Mapping[SplitName, str],
    checks: QuickChecks,
    inputs: RunInputs,
    *,
    pruner: MedianPruner | None,
    trial: int | None,
    has_refit: bool,
) -> None:
    """Train the models, measure them, and write the run's folder; results.json records
    how the run ended.
    """
    out, console = builder.out, workspace.console
    try:
        builder.write("running")
        with explain_memory_error("the preparation of the training", workspace.spec.config):
            teacher = _prepare(workspace, builder, checks, inputs, trial=trial)
        # Only now: a request that is refused leaves nothing behind.
        inputs.keep_digests()
        models, selected = _train_models(
            workspace, builder, checks, teacher, pruner, has_refit=has_refit
        )
        sweep = None if trial is None else out.parent
        with explain_memory_error("the measurement of the models", workspace.spec.config):
            select_measurement(workspace).measure(
                builder, workspace, models, splits, sweep=sweep, selected=selected
            )
        size = write_models(out, workspace, models, selected=selected)
        builder.models["student"].size_bytes = size
        results = builder.write("finished")
        if trial is None:
            write_report([out], out)
        workspace.tracker.log_results(results, list_uploads(out))
    except TrialPruned as reason:
        if pruner is not None:
            write_curves(out / CURVES, {"student": pruner.rows})
        builder.write("pruned", str(reason))
        console.print(f"{reason} {reason.hint}")
        return
    except Exception as error:
        with suppress(OSError):  # the disk may be full
            builder.write("failed", str(error) or type(error).__name__)
        raise
    console.print()
    console.show(build_summary(results))
    is_sample = workspace.data.name is None and workspace.spec.config["data"].get("root") is None
    show_end(console, results, out, is_sample=is_sample and trial is None)


def show_end(console: Console, results: Results, out: Path, *, is_sample: bool) -> None:
    """Draw the accuracies, and print where the run is. is_sample: the data come with a
    package, so the command for the user's own images follows.
    """
    split = results.test or results.validation
    if split is not None:
        console.show(draw_accuracies(split))
    if is_sample:
        console.print("Your own images, in a folder with a folder for each class:")
        console.print("  kd-distill data=folder data.root=my_images")
    if (out / PAGE).is_file():
        console.print(f"The page: {out / PAGE}")
    console.print(f"Everything is in {out}")


def _prepare(
    workspace: Workspace,
    builder: ResultsBuilder,
    checks: QuickChecks,
    inputs: RunInputs,
    *,
    trial: int | None,
) -> RunModel | None:
    """Load the data, print the plan, and check what can be checked before a training.

    Returns the teacher if it is used without training.
    """
    spec, console = workspace.spec, workspace.console
    builder.notes += _prepare_data(workspace, inputs)
    for note in (*list_length_notes(workspace), *note_class_weights(workspace)):
        builder.notes.append(note)
        console.print(f"Note: {note}")
    select_measurement(workspace).check_run(workspace)
    teacher = workspace.load_pretrained_teacher()
    is_ready = teacher is not None
    builder.teacher_labels = find_teacher_labels(workspace, ready=is_ready)
    forecast = forecast_run(workspace, ready=is_ready)
    models = build_initial_models(workspace, teacher)
    console.print(write_plan(workspace, models, ready=is_ready, forecast=forecast))
    check_batches(workspace, ready=is_ready)
    check_pair(workspace, models)
    builder.notes += checks.check_run(teacher, forecast)
    if spec.budget is not None:
        latency = check_latency(workspace, spec.budget, is_trial=trial is not None)
        workspace.resolved["student"] = {"latency_ms": latency}
    return teacher


def _train_models(
    workspace: Workspace,
    builder: ResultsBuilder,
    checks: QuickChecks,
    teacher: RunModel | None,
    pruner: MedianPruner | None,
    *,
    has_refit: bool,
) -> tuple[dict[str, RunModel], dict[str, RunModel]]:
    """Teacher, controls and student, each trained or reused; and the same models as
    they were when validation chose their epochs. They differ only with `has_refit`.
    """
    spec, tracker = workspace.spec, workspace.tracker
    models: dict[str, RunModel] = {}
    jobs: dict[str, TrainingJob] = {}
    if spec.teacher is not None:
        if teacher is None:
            teacher = train(workspace, build_teacher_job(workspace), listener=tracker)
            builder.notes += checks.check_trained_teacher(teacher)
        if select_measurement(workspace).measure_teacher(workspace, builder, teacher):
            models["teacher"] = teacher
        teacher = train_assistants(workspace, teacher)
        for name in spec.controls:
            jobs[name] = build_control_job(workspace, name, teacher)
            models[name] = train(workspace, jobs[name], listener=tracker)
    listener = Listeners([tracker, pruner]) if pruner is not None else tracker
    jobs["student"] = build_student_job(workspace, teacher)
    models["student"] = train(workspace, jobs["student"], listener=listener)
    again = {
        role: train_again(workspace, job, models[role]) for role, job in jobs.items() if has_refit
    }
    return {**models, **again}, models


def _prepare_data(workspace: Workspace, inputs: RunInputs) -> list[str]:
    """Load the data, record what the run reads, write the assignment of images to
    splits, and log both; return warnings of loss terms that do not suit the data.
    """
    out = inputs.out
    inputs.list_images()
    workspace.prepare_data()
    void_parts = workspace.check_losses()
    check_images_to_label(workspace)
    inputs.record()
    data, licenses = workspace.data, workspace.spec.licenses
    data.write_split(out / SPLIT)
    workspace.tracker.log_data(name_data(workspace), data.fingerprint, data.sizes, out / SPLIT)
    for note in (*data.notes, *licenses.unknown, *licenses.accepted):
        workspace.console.print(f"Note: {note}")
    for warning in void_parts:
        workspace.console.print(f"Warning: {warning}")
    return void_parts
