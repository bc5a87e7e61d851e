"""Where the weights of a model lie in a checkpoint."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from kd_app.models.checkpoint import Checkpoint
from kd_app.models.mismatch import is_counter, is_optional, list_mismatches

_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")
_ROLES = ("teacher", "student")
_SHOWN = 3


@dataclass(frozen=True)
class Place:
    """Where the tensors of a model lie in a checkpoint: a prefix of their names, and
    the names with it.
    """

    prefix: str
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        """'teacher' or 'student' if the prefix names one of them, else ''."""
        return next((role for role in _ROLES if role in self.prefix.lower()), "")

    def select_state(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Return the tensors by their names without the prefix."""
        return {key.removeprefix(self.prefix): checkpoint.tensors[key] for key in self.keys}

    def list_left_out(self, checkpoint: Checkpoint, own: Collection[str]) -> tuple[str, ...]:
        """Return the names that lie in the same state dict but not in the model."""
        used = {self.prefix + key for key in own}
        containers = {checkpoint.containers.get(key, "") for key in self.keys}
        return tuple(
            key
            for key in checkpoint.tensors
            if key not in used
            and checkpoint.containers.get(key, "") in containers
            and not is_counter(key)
        )


def find_place(
    checkpoint: Checkpoint, own: Mapping[str, Tensor], head_keys: Collection[str], *, role: str
) -> Place:
    """Return the place with all entries of the model but the head; if there is none,
    the place with the most of them.

    Of several places the one whose shapes fit is taken, then the one with a head, then
    that of the `role`, then that of averaged weights. Without a head the teacher is
    taken for a student, too: in self-supervised training the teacher is the average.
    """
    names = tuple(checkpoint.tensors)
    required = [key for key in own if key not in head_keys and not is_optional(key, own)]
    required = required or list(own)
    places = [
        Place(prefix, tuple(name for name in names if name.startswith(prefix)))
        for prefix in _list_prefixes(names, required)
    ]
    counts = [sum(place.prefix + key in checkpoint.tensors for key in required) for place in places]
    if max(counts, default=0) < len(required):
        best = max(zip(counts, range(len(places)), strict=True), default=(0, -1))[1]
        return places[best] if best >= 0 else Place("", names)
    whole = [place for place, count in zip(places, counts, strict=True) if count == len(required)]

    def rank(place: Place) -> tuple[int, bool, int, bool, bool]:
        state = place.select_state(checkpoint)
        has_head = all(key in state for key in head_keys)
        wanted = role if has_head and role in _ROLES else "teacher" if not has_head else "student"
        return (
            sum(map(len, list_mismatches(state, own, head_keys).values())),
            not has_head,
            0 if place.role == wanted else 1 if not place.role else 2,
            not _AVERAGED.search(place.prefix),
            place.prefix.split(".")[0] not in ("state_dict", "model", ""),
        )

    chosen, *others = sorted(whole, key=rank)
    return replace(chosen, notes=tuple(_describe_choice(chosen, others, role)))


def _list_prefixes(names: Iterable[str], required: Collection[str]) -> list[str]:
    """Return the prefixes behind which some names of the model occur."""
    anchors = list(required)[:: max(1, len(required) // 4)]
    return list(
        dict.fromkeys(
            name[: len(name) - len(anchor)]
            for anchor in anchors
            for name in names
            if name == anchor or name.endswith(f".{anchor}")
        )
    )


def _describe_choice(chosen: Place, others: Collection[Place], role: str) -> Iterable[str]:
    if others:
        sample = ", ".join(repr(place.prefix or "the top level") for place in others)
        yield (
            f"is read from {chosen.prefix!r} of the checkpoint, which also has weights in {sample}"
        )
    elif role == "teacher" and chosen.role == "student":
        yield (
            f"is read from {chosen.prefix!r} of the checkpoint, the weights of a student: those of"
            " its teacher are not in the file or belong to another architecture"
        )
