"""The main job: teacher, controls, student, results."""

from pathlib import Path

from kd_app.config import RequestError
from kd_app.config.make import make
from kd_app.metrics.verdict import Verdict
from kd_app.reporting.console import Console
from kd_app.reporting.page import write_report
from kd_app.reporting.results import Results, read
from kd_app.reporting.runs import write_curves
from kd_app.reporting.tables import summary
from kd_app.run_files import CURVES, RESULTS
from kd_app.stages import Stages, file_sha256
from kd_app.tracking import Backend, Tracker
from kd_app.training.assistants import train_assistants
from kd_app.training.parts import Config, OwnParts, Parts, parts
from kd_app.training.plan import plan
from kd_app.training.proof import SHOWN, SPLIT, Proof, data_name, evaluated
from kd_app.training.ranks.start import check_places
from kd_app.training.report_run import run_names
from kd_app.training.role_jobs import check_pair, control_job, student_job, teacher_job
from kd_app.training.run_folder import claimed, run_name
from kd_app.training.search.pruning import PrunedError, Watch
from kd_app.training.train import Listeners, train
from kd_app.training.workshop import Member, Workshop


def distill(
    config: Config,
    *,
    own: OwnParts | None = None,
    console: Console | None = None,
    trial: int | None = None,
) -> Path:
    """Do what the configuration says, or go on with it, or find it done; the run's
    folder.

    In a sweep, `trial` numbers the run: it lies in ``out/<trial>`` and leaves the test
    set to the winner. Raises `RequestError` before anything is read or written where
    the request is wrong, `RunError` where the run fails.
    """
    console = console or Console()
    made = parts(config, own)
    made.licenses.check()
    check_places(made.trainer)
    judge = Verdict(**config["verdict"])
    backends = {name: make(node, Backend) for name, node in config["logger"].items()}
    out = _folder(config, trial)
    marked = {
        **config,
        "own": sorted(name for name, part in vars(made.own).items() if part is not None),
    }
    with claimed(out, marked, overwrite=config["overwrite"]):
        read_test = config["test"] == "always" or (config["test"] == "auto" and trial is None)
        done = None if config["remake"] else _finished(out, made, console, read_test=read_test)
        if done is not None:
            console.say(
                f"{out} holds this run, finished. remake=[student] makes a stage anew,"
                " overwrite=true starts it afresh."
            )
            console.show(summary(done))
        else:
            group, name = run_names(out, trial=trial is not None)
            told = {**config, "license": {**config["license"], **made.licenses.told()}}
            about = {
                "name": name,
                "group": group,
                "tags": config["tags"],
                "shares": trial is not None,
            }
            tracker = Tracker(backends, out=out, config=told, say=console.say, **about)
            watch = Watch(out.parent, trial) if config["prune"] and trial is not None else None
            _go(
                made,
                out,
                console,
                tracker,
                judge,
                watch=watch,
                read_test=read_test,
                trial=trial is not None,
            )
    return out


def _folder(config: Config, trial: int | None) -> Path:
    out = Path(config["out"] or Path("runs") / run_name(config))
    return out if trial is None else out / str(trial)


def _finished(out: Path, made: Parts, console: Console, *, read_test: bool) -> Results | None:
    """The results of a finished run that measured what is asked for under these
    licenses, or of a pruned one where that is an end.
    """
    if not (out / RESULTS).is_file():
        return None
    try:
        found = read(out / RESULTS)
    except RequestError:
        return None  # cut off or corrupt: everything that took long is in the stages, so it is made again
    if found.status == "pruned":
        same = found.config.get("budget") == made.config["budget"]
        return (
            found
            if same and (made.config["prune"] is not None or made.config["budget"] is not None)
            else None
        )
    damaged = [
        file.name
        for file in found.files
        if not (out / file.name).is_file() or file_sha256(out / file.name) != file.sha256
    ]
    if damaged:
        console.say(f"{out / damaged[0]} is not what this run wrote; it is written again")
    now = made.config
    as_asked = (
        (found.test or not read_test)
        and found.config.get("examples", now["examples"]) == now["examples"]
        and (
            not now["robustness"]["corruptions"]
            or found.config.get("robustness") == now["robustness"]
        )
    )
    as_now = found.license is not None and found.license.model_dump() == made.licenses.told()
    return found if found.status == "finished" and as_asked and as_now and not damaged else None


def _go(
    made: Parts,
    out: Path,
    console: Console,
    tracker: Tracker,
    judge: Verdict,
    *,
    watch: Watch | None,
    read_test: bool,
    trial: bool,
) -> None:
    stages = Stages(Path(made.config["stages"]), remake=made.config["remake"], say=console.say)
    shop = Workshop(made, stages, console, tracker)
    proof = Proof(shop, out, judge, trial=trial)
    with tracker.followed():
        try:
            proof.write("running")
            members = _members(shop, console, proof, watch, trial=trial)
            proof.measure(
                members,
                {split: split for split in ("validation", "test") if split != "test" or read_test},
            )
            proof.ship(members)
            results = proof.write("finished")
            if not trial:
                write_report([out], out)
            tracker.results(results, [path for path in sorted(out.iterdir()) if path.name in SHOWN])
        except PrunedError as reason:
            if watch is not None:
                write_curves(out / CURVES, {"student": watch.rows})
            proof.write("pruned", reason=str(reason))
            console.say(f"{reason} {reason.hint}")
            return
        except Exception as error:
            proof.write("failed", reason=str(error) or type(error).__name__)
            raise
    console.say()
    console.show(summary(results))
    console.say(f"Everything is in {out}")


def _members(
    shop: Workshop, console: Console, proof: Proof, watch: Watch | None, *, trial: bool
) -> dict[str, Member]:
    """Teacher, controls and student, each made or found."""
    made = shop.parts
    shop.prepare_data()
    shop.check_losses()
    shop.data.write_split(proof.out / SPLIT)
    shop.tracker.data(data_name(shop), shop.data.fingerprint, shop.data.sizes, proof.out / SPLIT)
    for note in (*shop.data.notes, *made.licenses.unknown, *made.licenses.accepted):
        console.say(f"Note: {note}")
    teacher = shop.as_it_is()
    console.say(plan(shop, ready=teacher is not None))
    check_pair(shop)
    if made.budget is not None:
        shop.decided["student"] = {"latency_ms": made.budget.check(shop, trial=trial)}
    members: dict[str, Member] = {}
    if made.teacher is not None:
        teacher = teacher or train(shop, teacher_job(shop), listener=shop.tracker)
        if teacher.unmeasured:
            console.say(f"Note: {proof.unmeasured(teacher)}")
        else:
            members["teacher"] = teacher
            console.say(
                f"Teacher {teacher.request.name}:"
                f" {evaluated(shop.predictions(teacher, 'validation'))} on validation"
            )
            shop.tracker.knowledge(proof.knows(teacher, "validation"))
        teacher = train_assistants(shop, teacher)
        for name in made.controls:
            members[name] = train(shop, control_job(shop, name, teacher), listener=shop.tracker)
    listener = Listeners([shop.tracker, watch]) if watch is not None else shop.tracker
    members["student"] = train(shop, student_job(shop, teacher), listener=listener)
    return members
