"""One of several processes that train a model together: ``python -m
kd_app.training.ranks.rank job.json``, with the ranks in the environment.

It ends when its standard input does: whoever started it holds the other end.
"""

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from kd_app.config import RequestError, RunError
from kd_app.training.ranks.start import FAILED, REFUSED


def main() -> None:
    """Do one rank's part of the job; what goes wrong is the last line on stderr."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _train(
            json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), rank=int(os.environ["RANK"])
        )
    except (RequestError, RunError) as error:
        print(error, file=sys.stderr)
        _leave(REFUSED if isinstance(error, RequestError) else FAILED)
    except Exception:
        traceback.print_exc()
        _leave(FAILED)


def _leave(code: int) -> NoReturn:
    """Without the last words of torch.distributed, which would hide ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _train(job: dict[str, Any], rank: int) -> None:
    from kd_app.reporting.console import Console
    from kd_app.stages import Stages
    from kd_app.training.fit import fit, trained
    from kd_app.training.parts import parts
    from kd_app.training.recipe import Recipe
    from kd_app.training.roles import taught
    from kd_app.training.workshop import Member, Workshop

    made = parts(job["config"])
    console = Console(silent=rank != 0)
    shop = Workshop(made, Stages(Path(str(job["stages"]))), console, tracker=None)
    shop.load_data(Path(str(job["data"])) if job["data"] else None)
    teacher: Member | None = None
    if job["listens"]:
        assert made.teacher is not None
        request = (
            trained(made.teacher, Path(str(job["teacher"]))) if job["teacher"] else made.teacher
        )
        teacher = replace(shop.ready(request, seed=0), unmeasured=str(job["unmeasured"]))
    fit(
        taught(shop, str(job["role"]), teacher, Recipe(**job["recipe"])),
        shop.data,
        made.trainer,
        Path(str(job["folder"])),
        console=console,
    )


if __name__ == "__main__":
    main()
