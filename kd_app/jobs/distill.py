"""The main job: teacher, controls, student, results."""

from collections.abc import Mapping
from pathlib import Path

from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.results import FileRecord, Results, read
from kd_app.reporting.runs import write_curves
from kd_app.reporting.tables import build_summary
from kd_app.run.assistants import train_assistants
from kd_app.run.dark_knowledge import measure_teacher_knowledge
from kd_app.run.measurement import format_top1, measure_models, name_data, start_results
from kd_app.run.plan import write_plan
from kd_app.run.results_builder import ResultsBuilder, SplitName
from kd_app.run.role_jobs import build_control_job, build_student_job, build_teacher_job, check_pair
from kd_app.run.run_folder import build_run_name, claim_folder
from kd_app.run.run_output import SPLIT, list_uploads, write_models
from kd_app.run.spec import Config, ExternalParts, RunSpec, build_spec
from kd_app.run.train import Listeners, train
from kd_app.run.workspace import RunModel, Workspace
from kd_app.run_files import CURVES, RESULTS
from kd_app.search.pruning import MedianPruner, TrialPruned
from kd_app.stages import Stages, hash_file
from kd_app.tracking import Backend, Tracker
from kd_app.tracking.report import run_names
from kd_app.training.distributed.launch import check_places


def distill(
    config: Config,
    *,
    own: ExternalParts | None = None,
    console: Console | None = None,
    trial: int | None = None,
) -> Path:
    """Run what the configuration describes, resume it, or find it finished; the run's
    folder.

    In a sweep, `trial` numbers the run: its folder is ``out/<trial>``, and only the
    winner reads the test set. Raises `RequestError` before anything is read or written
    where the request is wrong, `RunError` where the run fails.
    """
    console = console or Console()
    spec = build_spec(config, own)
    spec.licenses.check()
    check_places(spec.trainer)
    rule = VerdictRule(**config["verdict"])
    backends = {name: make(node, Backend) for name, node in config["logger"].items()}
    out = _name_folder(config, trial)
    own_parts = sorted(name for name, part in vars(spec.external).items() if part is not None)
    splits: dict[SplitName, str] = {"validation": "validation"}
    if config["test"] == "always" or (config["test"] == "auto" and trial is None):
        splits["test"] = "test"
    with claim_folder(out, {**config, "own": own_parts}, overwrite=config["overwrite"]):
        results = None if config["remake"] else _find_results(out, spec, splits, console)
        if results is not None:
            console.print(
                f"{out} holds this run, finished. remake=[student] makes a stage anew,"
                " overwrite=true starts it afresh."
            )
            console.show(build_summary(results))
            return out
        tracker = _open_tracker(backends, spec, out, console, trial)
        watch = (
            MedianPruner(out.parent, trial)
            if config["trial_pruning"] and trial is not None
            else None
        )
        stages = Stages(Path(config["stages"]), remake=config["remake"], say=console.print)
        shop = Workspace(spec, stages, console, tracker)
        builder = start_results(shop, out, rule)
        with tracker.close_at_exit():
            _run(shop, builder, splits, watch, trial=trial)
    return out


def _name_folder(config: Config, trial: int | None) -> Path:
    out = Path(config["out"] or Path("runs") / build_run_name(config))
    return out if trial is None else out / str(trial)


def _open_tracker(
    backends: Mapping[str, Backend], spec: RunSpec, out: Path, console: Console, trial: int | None
) -> Tracker:
    """A tracker that knows the run's configuration with the licenses that follow from
    it.
    """
    group, name = run_names(out, trial=trial is not None)
    license = {**spec.config["license"], **spec.licenses.to_record()}
    return Tracker(
        backends,
        out=out,
        name=name,
        group=group,
        tags=spec.config["tags"],
        config={**spec.config, "license": license},
        shares=trial is not None,
        say=console.print,
    )


def _find_results(
    out: Path, spec: RunSpec, splits: Mapping[SplitName, str], console: Console
) -> Results | None:
    """The results of a finished run with these licenses that has measured all that the
    configuration wants, or of a trial that was ended early and may stay so.
    """
    if not (out / RESULTS).is_file():
        return None
    try:
        results = read(out / RESULTS)
    except RequestError:
        return None  # cut off or corrupt: the stages hold all that took long
    config = spec.config
    if results.status == "pruned":
        may_end_early = config["trial_pruning"] is not None or config["budget"] is not None
        same_budget = results.config.get("budget") == config["budget"]
        return results if may_end_early and same_budget else None
    damaged = next((file.name for file in results.files if not _is_intact(out, file)), None)
    if damaged:
        console.print(f"{out / damaged} is not what this run wrote; it is written again")
        return None
    is_complete = (
        (results.test is not None or "test" not in splits)
        and results.config.get("examples", config["examples"]) == config["examples"]
        and (
            not config["robustness"]["corruptions"]
            or results.config.get("robustness") == config["robustness"]
        )
    )
    has_license = results.license is not None and (
        results.license.model_dump() == spec.licenses.to_record()
    )
    return results if results.status == "finished" and is_complete and has_license else None


def _is_intact(out: Path, file: FileRecord) -> bool:
    path = out / file.name
    return path.is_file() and hash_file(path) == file.sha256


def _run(
    shop: Workspace,
    builder: ResultsBuilder,
    splits: Mapping[SplitName, str],
    watch: MedianPruner | None,
    *,
    trial: int | None,
) -> None:
    """Train the models, measure them, and write the run's folder; results.json says how
    the run ended.
    """
    out, console = builder.out, shop.console
    try:
        builder.write("running")
        models = _train_models(shop, builder, watch, trial=trial)
        sweep = None if trial is None else out.parent
        measure_models(builder, shop, models, splits, sweep=sweep)
        builder.models["student"].size_bytes = write_models(out, shop, models)
        results = builder.write("finished")
        if trial is None:
            write_report([out], out)
        shop.tracker.log_results(results, list_uploads(out))
    except TrialPruned as reason:
        if watch is not None:
            write_curves(out / CURVES, {"student": watch.rows})
        builder.write("pruned", str(reason))
        console.print(f"{reason} {reason.hint}")
        return
    except Exception as error:
        builder.write("failed", str(error) or type(error).__name__)
        raise
    console.print()
    console.show(build_summary(results))
    console.print(f"Everything is in {out}")


def _train_models(
    shop: Workspace, builder: ResultsBuilder, watch: MedianPruner | None, *, trial: int | None
) -> dict[str, RunModel]:
    """Teacher, controls and student, each trained or reused."""
    spec, console = shop.spec, shop.console
    _prepare_data(shop, builder.out)
    teacher = shop.load_pretrained_teacher()
    console.print(write_plan(shop, ready=teacher is not None))
    check_pair(shop)
    if spec.budget is not None:
        latency = spec.budget.check(shop, trial=trial is not None)
        shop.resolved["student"] = {"latency_ms": latency}
    models: dict[str, RunModel] = {}
    if spec.teacher is not None:
        teacher = teacher or train(shop, build_teacher_job(shop), listener=shop.tracker)
        if _measure_teacher(shop, builder, teacher):
            models["teacher"] = teacher
        teacher = train_assistants(shop, teacher)
        for name in spec.controls:
            models[name] = train(
                shop, build_control_job(shop, name, teacher), listener=shop.tracker
            )
    listener = Listeners([shop.tracker, watch]) if watch is not None else shop.tracker
    models["student"] = train(shop, build_student_job(shop, teacher), listener=listener)
    return models


def _prepare_data(shop: Workspace, out: Path) -> None:
    """Load the data, write which image is in which split, and name both to the trackers
    and on the console.
    """
    shop.prepare_data()
    shop.check_losses()
    shop.data.write_split(out / SPLIT)
    shop.tracker.log_data(name_data(shop), shop.data.fingerprint, shop.data.sizes, out / SPLIT)
    licenses = shop.spec.licenses
    for note in (*shop.data.notes, *licenses.unknown, *licenses.accepted):
        shop.console.print(f"Note: {note}")


def _measure_teacher(shop: Workspace, builder: ResultsBuilder, teacher: RunModel) -> bool:
    """Measure what the teacher knows beyond the labels; False for a teacher whose
    outputs have no metrics.
    """
    name = teacher.spec.name
    if teacher.no_metrics_reason:
        note = (
            f"The teacher, {name}, {teacher.no_metrics_reason}, so no figure compares the student with"
            " it; the controls say what it was worth."
        )
        builder.notes.append(note)
        shop.console.print(f"Note: {note}")
        return False
    predictions = shop.load_predictions(teacher, "validation")
    shop.console.print(f"Teacher {name}: {format_top1(predictions)} on validation")
    builder.knowledge = measure_teacher_knowledge(shop, predictions, "validation")
    shop.tracker.log_knowledge(builder.knowledge.model_dump())
    return True
