"""Where weights come from, and what is recorded with them: their classes, and the
arguments of their training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.records import parse_with
from kd_app.models.checkpoint import Checkpoint, read_checkpoint
from kd_app.models.class_names import ModelClasses, name_imagenet_classes, parse_labels
from kd_app.models.license import UNKNOWN
from kd_app.models.model_config import Channels, RecordedSide, Statistics
from kd_app.models.place import find_place

Kind = Literal["random", "hub", "folder", "file", "own"]
_HUB_TIMEOUT = 5.0
"""Seconds to wait for the first response of a hub."""
_ENTRIES: dict[tuple[str, str], dict[str, Tensor]] = {}
"""What `list_entries` returned, by name and arguments."""


@dataclass(frozen=True)
class WeightsSource:
    """Source of weights: 'random', 'hub' (timm's or a Hugging Face repository),
    'folder' (timm's local-dir), 'file', or 'own' (a factory).

    num_classes and label_names: classes of the weights, if known. license: license of
    the weights, or 'unknown'.
    """

    kind: Kind
    name: str
    path: Path | None = None
    license: str = UNKNOWN
    num_classes: int | None = None
    label_names: tuple[str, ...] | None = None

    @property
    def has_weights(self) -> bool:
        """Whether the weights are trained; random weights are not."""
        return self.kind != "random"


@dataclass(frozen=True)
class WeightsRecord:
    """What is recorded with weights. arguments: of timm's train.py, if it wrote the
    file. is_named: whether the names of the classes are recorded; else they are unknown
    or those of an ImageNet set. note: about the record, as a predicate.
    """

    classes: ModelClasses
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_named: bool = False
    note: str = ""


def read_record(
    origin: WeightsSource, kwargs: dict[str, Any], *, is_timm: bool, role: str
) -> WeightsRecord:
    """Read the classes of the weights: their names, or for weights of an ImageNet set
    its WordNet ids; the number of classes of a file from the rows of its classifier.

    role: decides between a student and a teacher in one file.

    Raises `RequestError` if a file or a hub's repository can't be read.
    """
    if origin.kind == "file":
        assert origin.path is not None
        checkpoint = read_checkpoint(origin.path)
        count = _count_classes(checkpoint, origin, kwargs, role) if is_timm else None
        return build_record(count, checkpoint.class_names, checkpoint.arguments)
    count, labels = origin.num_classes, origin.label_names
    if origin.kind == "hub" and count is None:
        cfg = load_timm_config(origin)
        count, labels = cfg.get("num_classes"), parse_labels(cfg.get("label_names"))
    if origin.kind not in ("hub", "folder"):
        return WeightsRecord(ModelClasses(count, labels or ()), is_named=bool(labels))
    return build_record(count, labels or ())


def build_record(
    count: int | None, names: tuple[str, ...], arguments: Mapping[str, Any] | None = None
) -> WeightsRecord:
    """The record of weights with `count` outputs (None: unknown) that name their
    classes; names of another number of classes are left out, with a note.
    """
    is_named = bool(names) and count in (None, len(names))
    note = (
        f"records {len(names):,} class names for its {count:,} outputs, so they are not used"
        if names and count and not is_named
        else ""
    )
    kept = names if is_named else name_imagenet_classes(count)
    total = len(kept) if count is None and kept else count
    return WeightsRecord(
        ModelClasses(total, kept), _select_arguments(arguments or {}), is_named, note
    )


class _Arguments(BaseModel):
    """The arguments of timm's train.py that decide what a model sees."""

    in_chans: Channels | None = None
    chans: Channels | None = None
    input_size: tuple[Channels, RecordedSide, RecordedSide] | None = None
    img_size: RecordedSide | None = None
    interpolation: Annotated[str, Field(max_length=40)] | None = None
    mean: Statistics | None = None
    std: Statistics | None = None
    crop_pct: Annotated[float, Field(strict=True, ge=0, le=2)] | None = None
    crop_mode: Annotated[str, Field(max_length=40)] | None = None


def _select_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of timm's train.py; nothing if one of them is not as timm writes
    it: then another script wrote the file.
    """
    try:
        chosen = _Arguments.model_validate(dict(arguments))
    except ValidationError:
        return {}
    channels = (chosen.input_size or (chosen.in_chans or chosen.chans or 3,))[0]
    lengths = {len(each) for each in (chosen.mean, chosen.std) if each is not None}
    return chosen.model_dump(exclude_unset=True) if lengths <= {1, channels} else {}


def _count_classes(
    checkpoint: Checkpoint, origin: WeightsSource, kwargs: dict[str, Any], role: str
) -> int | None:
    """Return the number of rows of a file's classifier; None if it has none."""
    own = list_entries(origin.name.split(".")[0], kwargs)
    heads = name_heads(load_timm_config(origin))
    keys = {key for key in own if any(key.startswith(f"{name}.") for name in heads)}
    prefix = find_place(checkpoint, own, keys, role=role).prefix if own else ""
    for key in sorted(keys):
        tensor = checkpoint.tensors.get(prefix + key)
        if tensor is not None and own[key].dim() > 1 and tensor.dim() > 1:
            return int(tensor.shape[0])
    return None


def list_entries(name: str, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of a timm model without allocating weights; nothing if the
    model can't be built so. Raises `TypeError` for arguments that it does not take.

    Cached, because a command specifies the same models several times.
    """
    key = name, repr(kwargs)
    if key not in _ENTRIES:
        _ENTRIES[key] = _build_entries(name, kwargs)
    return _ENTRIES[key]


def _build_entries(name: str, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    try:
        with torch.device("meta"):
            return dict(timm.create_model(name, pretrained=False, **kwargs).state_dict())
    except (NotImplementedError, RuntimeError, AssertionError, ValueError):
        # Some models can't be built on the meta device, or at the default size.
        # `create` checks the real model.
        return {}


def name_heads(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classifiers in timm's configuration of a model."""
    head = cfg.get("classifier") or ()
    return (head,) if isinstance(head, str) else tuple(head)


def load_timm_config(origin: WeightsSource) -> dict[str, Any]:
    """Return timm's pretrained_cfg of the weights, without building the model.

    Raises `RequestError` if the hub with the configuration can't be reached.
    """
    if origin.kind == "own" or (
        origin.kind == "file" and not timm.is_model(origin.name.split(".")[0])
    ):
        return {}
    if origin.kind == "folder" or origin.name.startswith("hf-hub:"):
        from timm.models import load_model_config_from_hf
        from timm.models._hub import load_model_config_from_path

        path = origin.path
        if path is None:
            return dict(fetch(origin, load_model_config_from_hf)[0])
        return parse_with(
            path,
            lambda: dict(load_model_config_from_path(path)[0]),
            expected="Expected a folder in timm's local-dir layout.",
        )
    cfg = timm.get_pretrained_cfg(origin.name, allow_unregistered=True)
    return dict(cfg.to_dict()) if cfg else {}


def fetch(origin: WeightsSource, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call `function`, which may access a hub. Raises `RequestError` if the hub can't
    be reached.
    """
    try:
        with _probe_hub_once():
            return function(*(args or (origin.name.removeprefix("hf-hub:"),)), **kwargs)
    except (OSError, RuntimeError, ValueError) as error:
        reason = take_first_line(error)[:200]
        raise RequestError(
            f"The weights of {origin.name!r} could not be fetched from their hub ({reason}). Get"
            " online, or put them in a folder and use name=local-dir:<folder> or"
            " checkpoint=<file>; pretrained=false starts from random weights."
        ) from None


@contextmanager
def _probe_hub_once() -> Iterator[None]:
    """Check once whether the hub can be reached; if not, read only the local cache.
    Offline, the client would retry every file for half a minute.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
    except Exception:
        # The client's errors have no common base class.
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
