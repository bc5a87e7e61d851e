"""What data, terms, controls and the way the teacher is asked allow of each other,
checked before anything is read.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from kd_app.config import RequestError
from kd_app.data.base import RunData, require
from kd_app.training.loss import DistillationLoss


def check_fed(
    data: RunData,
    answers: Literal["live", "stored"],
    taught: Mapping[str, DistillationLoss],
    shuffled: Iterable[str],
) -> None:
    """Refuse what does not go together (`RequestError`).

    taught: the terms of each training that listens to the teacher; shuffled: the
    controls that pair images of a class.
    """
    if answers == "stored":
        require(
            data,
            "views",
            because="teacher.answers=stored",
            instead="use teacher.answers=live",
        )
        _check_stored(taught)
    for name in shuffled:
        require(
            data,
            "partners",
            because=f"The control {name}",
            instead="leave that control out of 'controls=[...]'",
        )


def _check_stored(taught: Mapping[str, DistillationLoss]) -> None:
    for role, terms in taught.items():
        for name, term in terms.chosen.items():
            more = sorted(term.reads - {"logits"}) if term.needs_teacher else []
            if name in terms.members:
                raise RequestError(
                    "teacher.answers=stored keeps what several teachers say together, and the loss"
                    f" term {name} of the {role} reads {terms.members[name]} by itself. Use"
                    " teacher.answers=live."
                )
            if more:
                raise RequestError(
                    f"teacher.answers=stored keeps the teacher's logits, and the loss term {name}"
                    f" of the {role} reads its {', '.join(more)} as well. Use teacher.answers=live,"
                    " or terms that read logits alone: soft_target, dist or nkd."
                )
