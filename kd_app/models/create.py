"""Make the model that was asked for, with its weights and the pixels it expects."""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError
from kd_app.config.errors import take_first_line
from kd_app.models.layer_widths import WIDTHS, Widths, resize
from kd_app.models.save import CONFIG
from kd_app.models.simkd_student import REUSED, with_projector
from kd_app.models.spec import CompositeTeacher, ImageStats, ModelSpec, WeightsSource
from kd_app.models.weights import WeightsReport, load_into, read_state, state_sha256
from kd_app.models.weights_metadata import hash_weights

SMALL = 64
"""Up to this side (pixels) an image is used whole: no centre crop."""
_PATIENCE = 5.0
"""Seconds to wait for a hub's first answer."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, the pixels that it expects, what is known of its weights, and the widths
    of its layers that are not its architecture's.
    """

    model: nn.Module
    pixels: InputSpec
    weights: WeightsReport
    widths: Widths = field(default_factory=dict)


def resolve_input(request: ModelSpec, seen: ImageStats) -> InputSpec:
    """What the model is to be fed: as its weights were trained, or a factory's
    attribute `pixels` says; from random weights, the data as they are.

    Raises `RequestError` for a hub that can't be reached (the weights' own
    configuration lies there).
    """
    if isinstance(request, CompositeTeacher):
        return request.expect_input(seen)
    own = getattr(request.factory, "pixels", None)
    if isinstance(own, InputSpec):
        return own
    cfg = _load_timm_config(request.origin)
    data: dict[str, Any] = (
        resolve_data_config(pretrained_cfg=cfg)
        if cfg
        else {"crop_pct": 1.0, "interpolation": "bilinear"}
    )
    if request.origin.kind in ("hub", "folder"):
        channels, height, width = data["input_size"]
        channels = request.kwargs.get("in_chans", channels)
        height, width = (request.image_size,) * 2 if request.image_size else (height, width)
        mean, std = (tuple(_match_channels(data[key], channels)) for key in ("mean", "std"))
        return InputSpec(
            channels, height, width, mean, std, data["crop_pct"], data["interpolation"]
        )
    channels, size = request.kwargs.get("in_chans", seen.channels), request.image_size or seen.size
    crop = 1.0 if size <= SMALL else data["crop_pct"]
    mean, std = (
        tuple(_match_channels(seen.mean, channels)),
        tuple(_match_channels(seen.std, channels)),
    )
    return InputSpec(channels, size, size, mean, std, crop, data["interpolation"])


def create(request: ModelSpec, pixels: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
    """The model on the CPU, in eval mode; what is random in it is a function of `seed`
    alone.

    Raises `RequestError` for weights of another model, a module that does not give
    `num_classes` logits, or one that can't take such images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            created = _build(request, pixels, num_classes, seed)
        except (
            AssertionError,
            TypeError,
            RuntimeError,
            ValueError,
            KeyError,
            FileNotFoundError,
        ) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"The {request.role} {request.name} can't be made for images of"
                f" {pixels.height}x{pixels.width} with {request.kwargs!r}: {error}. Change"
                f" {request.role}.image_size, data.image_size or {request.role}.kwargs.* (for a"
                " ViT: patch_size and img_size)."
            ) from None
    _check_logits(request, created.model, pixels, num_classes)
    return created


def _build(request: ModelSpec, pixels: InputSpec, num_classes: int, seed: int) -> LoadedModel:
    if isinstance(request, CompositeTeacher):
        return request.build(pixels, num_classes, seed=seed)
    return (
        _own(request, pixels, num_classes)
        if request.factory
        else _create_timm(request, pixels, num_classes)
    )


def _load_timm_config(origin: WeightsSource) -> dict[str, Any]:
    """timm's pretrained_cfg of an origin, without making the model."""
    if origin.kind == "own" or (
        origin.kind == "file" and not timm.is_model(origin.name.split(".")[0])
    ):
        return {}
    if origin.kind == "folder" or origin.name.startswith("hf-hub:"):
        from timm.models import load_model_config_from_hf
        from timm.models._hub import load_model_config_from_path

        return dict(
            load_model_config_from_path(origin.path)[0]
            if origin.path
            else _fetch(origin, load_model_config_from_hf)[0]
        )
    cfg = timm.get_pretrained_cfg(origin.name, allow_unregistered=True)
    return dict(cfg.to_dict()) if cfg else {}


def _fetch(origin: WeightsSource, fetch: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what may go to a hub; a hub out of reach becomes one paragraph."""
    try:
        with _probe_hub_once():
            return fetch(*(args or (origin.name.removeprefix("hf-hub:"),)), **kwargs)
    except (OSError, RuntimeError, ValueError) as error:
        reason = take_first_line(error)[:200]
        raise RequestError(
            f"The weights of {origin.name!r} could not be fetched from their hub ({reason}). Get"
            " online, or put them in a folder and use name=local-dir:<folder> or"
            " checkpoint=<file>; pretrained=false starts from random weights."
        ) from None


@contextmanager
def _probe_hub_once() -> Iterator[None]:
    """Ask the hub once whether it is there. If it is not, only its cache is read: its
    client would try every file for half a minute.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except (
        Exception
    ):  # the client's errors have no common base: no network, no name, no answer, offline by choice
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _create_timm(request: ModelSpec, pixels: InputSpec, num_classes: int) -> LoadedModel:
    origin, kwargs = request.origin, dict(request.kwargs)
    cfg = _load_timm_config(origin)
    kwargs.setdefault("in_chans", pixels.channels)
    if cfg.get("fixed_input_size") and (pixels.height, pixels.width) != tuple(
        cfg["input_size"][1:]
    ):
        kwargs.setdefault("img_size", (pixels.height, pixels.width))
    name = f"local-dir:{origin.path}" if origin.kind == "folder" else origin.name
    state, source, sha256 = _state(origin, name, kwargs)
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs).eval()
    recorded = _read_folder_config(origin)
    widths = recorded.get(WIDTHS, {})
    resize(model, widths, source=source)
    if state is None:
        return LoadedModel(
            model, pixels, WeightsReport("random", state_sha256(model.state_dict()), 0)
        )
    head = cfg.get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    if REUSED in recorded:
        model, heads = (
            with_projector(model, recorded[REUSED], state, num_classes, source=source),
            ("classifier",),
        )
    return LoadedModel(
        model, pixels, load_into(model, state, head=heads, source=source, sha256=sha256), widths
    )


def _read_folder_config(origin: WeightsSource) -> dict[str, Any]:
    """What a folder says beside the architecture; nothing of an origin that is no
    folder.
    """
    found = (
        json.loads((origin.path / CONFIG).read_text(encoding="utf-8"))
        if origin.kind == "folder" and origin.path
        else {}
    )
    return found if isinstance(found.get(WIDTHS, {}), dict) else {WIDTHS: {WIDTHS: {}}}


def _state(
    origin: WeightsSource, name: str, kwargs: dict[str, Any]
) -> tuple[dict[str, Tensor] | None, str, str]:
    """The weights with all their classes, what to call their source, and their sha256."""
    if origin.kind == "random":
        return None, "random", ""
    if origin.kind == "file":
        assert origin.path is not None
        return read_state(origin.path), f"file {origin.path.name}", hash_weights(origin.path)
    if origin.kind == "folder":
        assert origin.path is not None
        path = origin.path / "model.safetensors"
        state = read_state(path)
        return state, f"folder {origin.path.name}", hash_weights(path)
    full = _fetch(origin, timm.create_model, name, pretrained=True, **kwargs)
    state = full.state_dict()
    return state, f"hub {origin.name}", state_sha256(state)


def _own(request: ModelSpec, pixels: InputSpec, num_classes: int) -> LoadedModel:
    assert request.factory is not None
    offered = {"num_classes": num_classes, "in_chans": pixels.channels}
    accepted = inspect.signature(request.factory).parameters
    kwargs = {**{k: v for k, v in offered.items() if k in accepted}, **request.kwargs}
    model = request.factory(**kwargs)
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"{request.role}._target_={request.name} gave a {type(model).__name__}, expected a"
            " torch.nn.Module that gives logits."
        )
    path = request.origin.path
    if path is None:
        return LoadedModel(
            model.eval(),
            pixels,
            WeightsReport(
                f"own {request.name}", state_sha256(model.state_dict()), len(model.state_dict())
            ),
        )
    report = load_into(
        model, read_state(path), head=(), source=f"file {path.name}", sha256=hash_weights(path)
    )
    return LoadedModel(model.eval(), pixels, report)


def _check_logits(
    request: ModelSpec, model: nn.Module, pixels: InputSpec, num_classes: int
) -> None:
    """One pass over two gray images: the model takes such pixels and answers in as many
    classes as the data have.
    """
    with torch.no_grad():
        try:
            logits = model(torch.zeros(2, pixels.channels, pixels.height, pixels.width))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = take_first_line(error)
            raise RequestError(
                f"The {request.role} {request.name} can't take images of"
                f" {pixels.channels}x{pixels.height}x{pixels.width}: {reason} Change"
                f" data.image_size, {request.role}.image_size or {request.role}.kwargs.*"
                " (patch_size, img_size, in_chans)."
            ) from None
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise RequestError(
            f"The {request.role} {request.name} answers two images with {shape}, expected logits of"
            f" shape (2, {num_classes}): the data have that many classes. A model of other classes"
            " has to be fine-tuned, or made with num_classes of the data."
        )


def _match_channels(values: Any, channels: int) -> list[float]:
    """Statistics for `channels` channels: as they are, or their mean repeated where the
    number differs.
    """
    values = [float(v) for v in values]
    return values if len(values) == channels else [round(sum(values) / len(values), 6)] * channels
