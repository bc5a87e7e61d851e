"""What data, terms, controls and the way the teacher is asked allow of each other,
checked before anything is read.
"""

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any, Literal

from kd_app.config import RequestError
from kd_app.data.module import ImageData
from kd_app.training.terms import WeightedTerms

OURS_ALONE = ("views", "labels", "unlabeled", "mix", "augment")
_DOES = {"mix": ("mixup", "cutmix"), "augment": ("operations", "erasing")}
"""Of settings that are groups: the keys of which one has to be set for anything to be
done.
"""
"""Settings of the data group, that a data module of somebody's own need not know."""


def check_fed(
    node: Mapping[str, Any],
    data: Any,
    answers: Literal["live", "stored"],
    taught: Mapping[str, WeightedTerms],
    shuffled: Iterable[str],
) -> None:
    """Refuse what does not go together (`RequestError`).

    node: the data group; taught: the terms of each training that listens to the
    teacher; shuffled: the controls that pair images of a class.
    """
    theirs = () if isinstance(data, ImageData) else signature(type(data.module)).parameters
    for key in () if isinstance(data, ImageData) else OURS_ALONE:
        asked = node.get(key) is not None and (
            key not in _DOES or any(node[key].get(each) for each in _DOES[key])
        )
        if asked and key not in theirs:
            raise RequestError(
                f"data.{key}={node[key]} is for the images that kd_app reads, and a data module of"
                " your own gives the batches here. Leave it out, or read the images by data=folder"
                " or data=csv."
            )
    if answers == "stored":
        _check_stored(node, data, taught)
    for key in ("labels", "unlabeled"):
        for name in shuffled if getattr(data, key, None) is not None else ():
            raise RequestError(
                f"data.{key}={getattr(data, key)}, and the control {name} shows the teacher another"
                " image of each one's class, for which every image needs its label. Leave that"
                f" control out of 'controls=[...]', or use data.{key}=null."
            )


def _check_stored(node: Mapping[str, Any], data: Any, taught: Mapping[str, WeightedTerms]) -> None:
    if not isinstance(data, ImageData):
        raise RequestError(
            "teacher.answers=stored keeps the teacher's answers by image and view, and the data"
            " module of this run gives batches without views. Use teacher.answers=live, or read the"
            " images by data=folder or data=csv."
        )
    if data.views is None:
        raise RequestError(
            "teacher.answers=stored, and data.views=null shows every image in a fresh view every"
            " epoch: there is nothing to store. Set data.views, for example data.views=4, or use"
            " teacher.answers=live."
        )
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
