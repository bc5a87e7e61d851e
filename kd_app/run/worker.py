"""One process of a distributed training: ``python -m kd_app.run.worker job.json
<sha256>``, with RANK in the environment.

The process exits when its standard input is closed, so it never outlives the process
that started it.
"""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.config.memory import explain_memory_error
from kd_app.signals import compute_exit_code, find_stop, name_signal, stop_on_signals
from kd_app.streams import drop_lost_output
from kd_app.training.launch import FAILED, REFUSED, hash_job

if TYPE_CHECKING:
    from kd_app.data.base import RunData
    from kd_app.tasks.base import Task
    from kd_app.training.job import JobTeacher, TrainingJob


def main() -> None:
    """Train as one rank; an error is the last line on stderr."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with drop_lost_output(), stop_on_signals():
        _run()


def _run() -> None:
    try:
        order = read_order(Path(sys.argv[1]), sys.argv[2])
        with explain_memory_error(f"process {os.environ['RANK']} of the training", order):
            _train(order, rank=int(os.environ["RANK"]))
    except (RequestError, RunError) as error:
        print(error, file=sys.stderr)
        _exit(REFUSED if isinstance(error, RequestError) else FAILED)
    except BaseException as error:
        number = find_stop()
        if number is not None:
            print(f"This process was stopped by {name_signal(number)}.", file=sys.stderr)
            _exit(compute_exit_code(number))
        traceback.print_exception(error)
        _exit(FAILED)


def read_order(path: Path, sha256: str) -> dict[str, Any]:
    """The content of a job's file. Raises `RunError` if it is not the file that the
    starting process wrote.
    """
    content = path.read_bytes()
    if hash_job(content) != sha256:
        raise RunError(
            f"{str(path)!r} was changed between the start of the training and its processes, so it"
            " is not read. If other users may write to the folder of the stages, use stages= for"
            " another one."
        )
    order: dict[str, Any] = json.loads(content)
    return order


def _exit(code: int) -> NoReturn:
    # A normal exit lets torch.distributed print messages after the error.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _train(order: dict[str, Any], rank: int) -> None:
    from kd_app.config.make import make
    from kd_app.data.build import build_data
    from kd_app.reporting.console import Console
    from kd_app.training.fit import fit
    from kd_app.training.trainer import TrainerSettings

    trainer = make(order["trainer"], TrainerSettings)
    data = build_data(order["data"])
    data.list()
    data.load(Path(order["data_folder"]) if order["data_folder"] else None)
    if order["max_views"] is not None:
        data.limit_views(order["max_views"])
    fit(
        load_job(order["job"], data),
        data,
        trainer,
        Path(order["folder"]),
        console=Console(silent=rank != 0),
    )


def load_job(record: dict[str, Any], data: "RunData") -> "TrainingJob":
    """The job whose ``to_json()`` is `record`, with the teacher's weights loaded.

    The `data` must be loaded.
    """
    from kd_app.specs.model_specs import parse_model
    from kd_app.tasks.build import parse_task
    from kd_app.training.job import Recipe, TrainingJob

    model, task = parse_model(record["model"]), parse_task(record["task"])
    task.bind_model(model, data.classes)
    return TrainingJob(
        name=record["name"],
        model=model,
        input=_parse_input(record["input"]),
        recipe=Recipe(**record["recipe"]),
        teacher=_load_teacher(record["teacher"], data, task) if record["teacher"] else None,
        partners=record["partners"],
        pseudo_labels=Path(record["pseudo_labels"]) if record["pseudo_labels"] else None,
        fresh_views=record["fresh_views"],
        license=record["license"],
        refit_weights=record["refit_weights"],
        task=task,
    )


def _load_teacher(record: dict[str, Any], data: "RunData", task: "Task") -> "JobTeacher":
    from kd_app.models.create import create
    from kd_app.models.spec import CompositeTeacher, ImageStats
    from kd_app.specs.model_specs import parse_model
    from kd_app.training.job import CachedOutputs, JobTeacher

    model, classes = parse_model(record["model"]), tuple(data.classes)
    if isinstance(model, CompositeTeacher):
        model.bind_images(
            ImageStats(data.channels, data.size, *data.compute_pixel_statistics(), data.width)
        )
    task.bind_model(model, classes)
    cached = record["cached"]
    return JobTeacher(
        model,
        create(
            model, _parse_input(record["input"]), task.count_outputs(classes, "teacher"), seed=0
        ),
        **{
            name: Path(record[name]) if record[name] else None
            for name in ("folder", "validation_logits")
        },
        cached=CachedOutputs(cached["format"], tuple(map(Path, cached["shards"])))
        if cached
        else None,
    )


def _parse_input(record: dict[str, Any]) -> InputSpec:
    return InputSpec(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})


if __name__ == "__main__":
    main()
