"""Choose the format of a teacher cache by what the loss terms read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from kd_app.config import RequestError
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.tasks.base import Task
from kd_app.teacher_outputs.format import (
    FORMATS,
    CacheFormat,
    EmbeddingFormat,
    ExactFormat,
    Float16Format,
    Int8Format,
    TermNeed,
    explain_width,
)

CacheSetting = Literal["auto", "exact", "int8", "float16", "top10", "embedding"]
"""``teacher.cache``."""
_SMALL = 256
"""Bytes of a view up to which `auto` stores exact logits."""
_LIVE = "Use teacher.outputs=live"


def list_needs(losses: Mapping[str, DistillationLoss], task: Task) -> list[TermNeed]:
    """What each term reads of the teacher; `losses` by role."""
    return [
        TermNeed(
            role,
            name,
            task.map_reads(term.teacher_reads),
            term.teacher_temperature,
            term.label_temperature,
            loss.members.get(name),
        )
        for role, loss in losses.items()
        for name, term in loss.chosen.items()
        if term.needs_teacher
    ]


def choose_format(
    setting: CacheSetting,
    needs: Sequence[TermNeed],
    classes: int,
    measure_width: Callable[[], int | None],
) -> CacheFormat:
    """The format that `setting` names. For auto, exact logits where they take at most
    256 bytes a view, else the smaller of int8 and embedding that serves all `needs`:
    top10 cost students accuracy (docs/measured.md), so it is only used by name.

    measure_width: returns the width of the teacher's embedding; None if it has none.
    Called only where the answer matters. Raises `RequestError` for a format that can't
    serve a term, with the reason.
    """
    if setting != "auto":
        check_format(setting, needs)
        if reason := explain_width(setting, classes):
            raise RequestError(f"teacher.cache={setting} {reason}. Use teacher.cache=int8.")
        return _build(setting, classes, measure_width)
    candidates = [name for name in FORMATS if not _find_refusal(name, needs)]
    if not candidates:
        check_format(setting, needs)
    if ExactFormat.name in candidates and 4 * classes <= _SMALL:
        return ExactFormat(classes)
    if Int8Format.name not in candidates:
        return _build(EmbeddingFormat.name, classes, measure_width)
    smallest: CacheFormat = Int8Format(classes)
    # a wider embedding than classes / 2 is not smaller, and most are wider than this
    width = measure_width() if classes > _SMALL else None
    if width is not None and EmbeddingFormat(width).bytes_per_view < smallest.bytes_per_view:
        smallest = EmbeddingFormat(width)
    return smallest


def check_task_format(setting: CacheSetting, task: Task) -> None:
    """Raise `RequestError` for a format that a task can't use: what the formats of
    classes lose is measured on probabilities.
    """
    known = ("auto", ExactFormat.name, Float16Format.name)
    if not task.reads_labels and setting not in known:
        raise RequestError(
            f"teacher.cache={setting} keeps what a classifier says, and task={task.name} reads"
            f" the teacher's embedding. Use teacher.cache={Float16Format.name} or"
            f" {ExactFormat.name}."
        )


def choose_embedding_format(setting: CacheSetting, width: int) -> CacheFormat:
    """The format of embeddings of this width: exact if that is the setting, or for auto
    if they take at most 256 bytes.
    """
    is_small = setting == "auto" and 4 * width <= _SMALL
    return ExactFormat(width) if setting == ExactFormat.name or is_small else Float16Format(width)


def check_format(setting: CacheSetting, needs: Iterable[TermNeed]) -> None:
    """Raise `RequestError` if a format can't serve a term; auto if no format can."""
    needs = list(needs)
    names = list(FORMATS) if setting == "auto" else [setting]
    refusals = [_find_refusal(name, needs) for name in names]
    if not all(refusals):
        return
    need, reason = next(each for each in reversed(refusals) if each)
    others = [name for name in FORMATS if name not in names and not _find_refusal(name, needs)]
    ways = (
        f"{_LIVE}, or teacher.cache={' or '.join(others)}"
        if others
        else (f"{_LIVE}, or loss terms that read less of the teacher: soft_target, dist or nkd")
    )
    raise RequestError(
        f"teacher.outputs=cached with teacher.cache={setting} can't train the {need.role}: its loss"
        f" term {need.term} {reason}. {ways}."
    )


def _find_refusal(name: str, needs: Iterable[TermNeed]) -> tuple[TermNeed, str] | None:
    refusals = ((need, FORMATS[name].explain_refusal(need)) for need in needs)
    return next(((need, reason) for need, reason in refusals if reason), None)


def _build(name: str, classes: int, measure_width: Callable[[], int | None]) -> CacheFormat:
    if name != EmbeddingFormat.name:
        return FORMATS[name](classes)
    width = measure_width()
    if width is None:
        raise RequestError(
            "teacher.cache=embedding stores the input of the teacher's classifier, but this teacher"
            f" provides no embedding. {_LIVE}, or loss terms that read only logits with"
            " teacher.cache=int8."
        )
    return EmbeddingFormat(width)
