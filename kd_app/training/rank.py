"""One of several processes that train a model together: ``python -m kd_app.training.rank job.json``, with the ranks in the environment."""

import json
import os
import sys
from pathlib import Path

from kd_app.config import RequestError, RunError


def main() -> int:
    """Do one rank's part of the job; what goes wrong is the last line on stderr."""
    rank = int(os.environ["LOCAL_RANK"])
    try:
        _train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), rank)
    except (RequestError, RunError) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _train(job: dict[str, object], rank: int) -> None:
    from kd_app.reporting.console import Console
    from kd_app.stages import Stages
    from kd_app.training.fit import fit, trained
    from kd_app.training.parts import parts
    from kd_app.training.workshop import Member, Workshop

    made = parts(job["config"])  # type: ignore[arg-type]
    console = Console(silent=rank != 0)
    shop = Workshop(made, Stages(Path(str(job["stages"]))), console, tracker=None)
    shop.load_data(Path(str(job["data"])) if job["data"] else None)
    teacher: Member | None = None
    if job["listens"]:
        assert made.teacher is not None
        request = trained(made.teacher, Path(str(job["teacher"]))) if job["teacher"] else made.teacher
        teacher = shop.ready(request, seed=0)
    fit(shop.taught(str(job["role"]), teacher), shop.data, made.trainer, Path(str(job["folder"])), console=console)


if __name__ == "__main__":
    sys.exit(main())
