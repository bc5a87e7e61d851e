"""A finished run's models, measured again on its own or other data."""

import json
from dataclasses import replace
from pathlib import Path

import yaml

from kd_app.config import RequestError
from kd_app.config.errors import first_line
from kd_app.metrics.verdict import Verdict
from kd_app.models.request import ModelRequest
from kd_app.models.ship import INT8
from kd_app.reporting.console import Console
from kd_app.reporting.results import Results, read
from kd_app.reporting.tables import summary
from kd_app.stages import RECORD, Stages
from kd_app.training.fit import MODEL
from kd_app.training.parts import Config, parts
from kd_app.training.proof import Proof
from kd_app.training.run_folder import CONFIG, RESULTS, claimed
from kd_app.training.settings import Evaluation
from kd_app.training.workshop import Member, Workshop

OWN, COMPRESSED = "own", "compressed"
"""Keys of a run's record that are none of its settings: parts handed over as objects,
and how it was compressed.
"""
STAGES = "runs/.stages"
"""Where the answers are kept when the run's own stages are not here; as in
``conf/distill.yaml``.
"""


def evaluate(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Measure the models of ``config['run']`` and write a results.json into
    ``config['out']``; the folder of the results.

    Raises `RequestError`: no finished run, classes that are not the run's, an unknown
    split.
    """
    Evaluation(**config)
    console = console or Console()
    run, out = Path(config["run"]), Path(config["out"]) / ("" if trial is None else str(trial))
    before = read(run / RESULTS)
    if before.status != "finished":
        raise RequestError(
            f"The run {str(run)!r} is {before.status}, not finished. Say its kd-distill command"
            " again to finish it, then evaluate."
        )
    asked = to_measure(run, config, before)
    made = parts(asked)
    strange = set(before.models) - {"teacher", "student", *asked["controls"]}
    if strange:
        raise RequestError(
            "The run's results name models that its configuration does not:"
            f" {', '.join(map(repr, sorted(strange)[:5]))}."
        )
    with claimed(out, {**config, "run": str(run)}, overwrite=config["overwrite"]):
        shop = Workshop(made, Stages(Path(asked["stages"]), say=console.say), console, tracker=None)
        shop.prepare_data()
        check_classes(shop, before)
        proof = Proof(shop, out, Verdict(**asked["verdict"]), again=before)
        split = (
            ("all" if config["data"] else "test") if config["split"] == "auto" else config["split"]
        )
        proof.measure(members_of(shop, run, before, console), {"test": split})
        results = proof.write("finished")
        console.show(summary(results))
        console.say(
            f"Measured {split} images of {config['data']['name'] if config['data'] else 'the run'}:"
            f" {out}"
        )
    return out


def to_measure(run: Path, config: Config, before: Results) -> Config:
    """The run's own configuration, with what is asked for now, for this machine."""
    found = as_run(run, config, before)
    found["data"] = config["data"] or found["data"]
    found["examples"], found["robustness"] = config["examples"], config["robustness"]
    found["license"] = {"accept": [], "policy": None}  # to measure is not to make
    found["trainer"] = {
        **found["trainer"],
        "accelerator": "auto",
        "devices": 1,
        "precision": "auto",
        "limit_test_batches": config["limit"],
    }
    return found


def as_run(run: Path, config: Config, before: Results) -> Config:
    """The configuration of a finished run. Where it may write and what it may name is
    what is asked for now, not what the run says.
    """
    try:
        found: Config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        stages = Path(found["stages"])
        dict(found["trainer"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"The run's configuration {str(run / CONFIG)!r} can't be read: {first_line(error)}."
            " Name a whole run folder."
        ) from None
    for key in (OWN, COMPRESSED):
        found.pop(key, None)
    found["budget"] = None  # it is trained already
    found["stages"] = config["stages"] or (str(stages) if _is_there(before, stages) else STAGES)
    found["allow"] = config["allow"]  # what the run itself allowed is no reason to trust it
    return found


def _is_there(before: Results, stages: Path) -> bool:
    """The folder holds a stage of this run, so the run was made with it here. Whoever
    else sends a run does not say where this machine writes.
    """
    return any(
        (path / RECORD).is_file() and path.parent == stages
        for path in (Path(stage.path) for stage in before.stages)
    )


def check_classes(shop: Workshop, before: Results) -> None:
    """Refuse data whose classes are not those of the run."""
    trained = tuple(before.data.classes) if before.data else ()
    if shop.classes != trained:
        strange = [name for name in shop.classes if name not in trained] or [
            name for name in trained if name not in shop.classes
        ]
        raise RequestError(
            f"The run's models know {len(trained)} classes, these data have {len(shop.classes)};"
            f" they differ in {', '.join(map(repr, strange[:5]))}. Expected the same classes by the"
            " same names."
        )


def members_of(shop: Workshop, run: Path, before: Results, console: Console) -> dict[str, Member]:
    """The models that are still there; one whose stage was removed is left out, and
    said to be.
    """
    members: dict[str, Member] = {}
    stages = {stage.name: Path(stage.path) for stage in before.stages}
    for role in before.models:
        folder = run / "student" if role == "student" else stages.get(role, run) / MODEL
        request = _teacher(shop, run) if role == "teacher" else _own(shop, role, folder)
        if request is None:
            console.say(
                f"Note: the {role} is not there any more ({stages.get(role, run)}); it is left out"
            )
        else:
            program = folder / INT8
            int8 = program if role == "student" and program.is_file() else None
            members[role] = replace(
                shop.ready(request, seed=0), folder=_stage_of(request), program=int8
            )
    return members


def _stage_of(request: ModelRequest) -> Path | None:
    """The folder of the stage that left a model; None where it came from elsewhere."""
    path = request.origin.path
    places = (path, path.parent) if path else ()
    return next(
        (
            place.parent
            for place in places
            if place.name == MODEL and (place.parent / RECORD).is_file()
        ),
        None,
    )


def _teacher(shop: Workshop, run: Path) -> ModelRequest | None:
    path = run / "teacher" / "reference.json"
    try:
        stage = json.loads(path.read_text(encoding="utf-8"))["stage"]
        folder = Path(stage) / MODEL if stage else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{str(path)!r} does not say where the teacher is ({type(error).__name__}). Name a"
            " whole run folder."
        ) from None
    if folder is not None:
        return _own(shop, "teacher", folder)
    return shop.parts.teacher


def _own(shop: Workshop, role: str, folder: Path) -> ModelRequest | None:
    """The request for a model that a training left in `folder`: timm's local-dir, or
    weights for the module that the run's factory makes.
    """
    if not (folder / "config.json").is_file():
        return None
    control = shop.parts.controls.get(role)
    own = control.students if control else ()
    asked = shop.parts.teacher if role == "teacher" else own[0] if own else shop.parts.student
    assert asked is not None
    if asked.factory is None:
        return ModelRequest(
            role=role,
            name=None,
            pretrained="auto",
            checkpoint=folder,
            kwargs={},
            image_size=None,
            factory=None,
        )
    weights = folder / "model.safetensors"
    return ModelRequest(
        role=role,
        name=None,
        pretrained="auto",
        checkpoint=weights,
        kwargs=asked.kwargs,
        image_size=asked.image_size,
        factory=asked.factory,
    )
