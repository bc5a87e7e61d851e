"""Create a model from its spec: weights, input spec and layer widths."""

import hashlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.memory import is_out_of_memory
from kd_app.models.checkpoint import Checkpoint, read_checkpoint
from kd_app.models.class_names import ClassMatch
from kd_app.models.finite import describe_nonfinite, find_nonfinite
from kd_app.models.layer_widths import WIDTHS, resize
from kd_app.models.model_config import read_model_config
from kd_app.models.save import EMBEDDING, WEIGHTS
from kd_app.models.simkd_student import REUSED, build_simkd_student
from kd_app.models.spec import CompositeTeacher, ImageStats, LoadedModel, ModelSpec
from kd_app.models.token_embedding import TokenEmbedding
from kd_app.models.weights import WeightsReport, hash_state, load_weights
from kd_app.models.weights_metadata import hash_weights
from kd_app.models.weights_source import WeightsSource, fetch, load_timm_config, name_heads

SMALL = 64
"""Images up to this side (pixels) are used whole, without a center crop."""
_COMMON_SIZES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 384)
"""Sides (pixels) to suggest to a model that rejects the size of the data."""


def resolve_input(spec: ModelSpec, image_stats: ImageStats) -> InputSpec:
    """The input spec of a model: from the configuration of pretrained weights,
    or from the attribute `pixels` of a factory. A model with random weights gets the
    statistics and the size of the data.

    Raises `RequestError` if the hub with the weights' configuration can't be reached.
    """
    if isinstance(spec, CompositeTeacher):
        return spec.expect_input(image_stats)
    own = getattr(spec.factory, "pixels", None)
    if isinstance(own, InputSpec):
        return own
    cfg, arguments = load_timm_config(spec.origin), spec.record.arguments
    data: dict[str, Any] = (
        resolve_data_config(dict(arguments), pretrained_cfg=cfg)
        if cfg
        else {"crop_pct": 1.0, "interpolation": "bilinear"}
    )
    if spec.origin.kind in ("hub", "folder"):
        channels, height, width = data["input_size"]
        channels = spec.kwargs.get("in_chans", channels)
        height, width = _read_size(spec) or (height, width)
        mean, std = (tuple(_match_channels(data[key], channels)) for key in ("mean", "std"))
        return InputSpec(
            channels, height, width, mean, std, data["crop_pct"], data["interpolation"]
        )
    channels = spec.kwargs.get("in_chans", image_stats.channels)
    height, width = _read_size(spec) or image_stats.shape
    crop = 1.0 if max(height, width) <= SMALL else data["crop_pct"]
    # timm's train.py always records `mean`, as None for that of the architecture.
    mean, std = (
        (data["mean"], data["std"])
        if "mean" in arguments and cfg
        else (image_stats.mean, image_stats.std)
    )
    mean, std = (tuple(_match_channels(values, channels)) for values in (mean, std))
    return InputSpec(channels, height, width, mean, std, crop, data["interpolation"])


def _read_size(spec: ModelSpec) -> tuple[int, int] | None:
    """Height and width that are set for a model."""
    size = spec.image_size
    if size is None or isinstance(size, int):
        return None if size is None else (size, size)
    height, width = size
    return height, width


def create(spec: ModelSpec, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
    """Create the model on the CPU, in eval mode. Random weights depend only on `seed`.

    num_classes: width of the output; 0: without a head, so that the output is the
    pooled embedding, or with the projector of a model that was trained to output one.

    Raises `RequestError` for weights of another model, for a module that does not
    return `num_classes` logits, and for a model that rejects images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            loaded = _select_tokens(spec, _build(spec, input_spec, num_classes, seed))
        except Exception as error:
            # an architecture may fail at a size, or with arguments, in any way
            is_system = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if isinstance(error, RequestError) or is_system or is_out_of_memory(error):
                raise
            raise RequestError(
                f"The {spec.role} {spec.name} can't be built for images of"
                f" {input_spec.height}x{input_spec.width} with {spec.kwargs!r}:"
                f" {_describe_failure(error)}."
                f"{_suggest_size(spec, input_spec, num_classes)} Change {spec.role}.image_size,"
                f" data.image_size or {spec.role}.kwargs.* (for a ViT: patch_size and img_size)."
            ) from None
    _check_logits(spec, loaded.model, input_spec, num_classes)
    return loaded


def _build(spec: ModelSpec, input_spec: InputSpec, num_classes: int, seed: int) -> LoadedModel:
    if isinstance(spec, CompositeTeacher):
        return spec.build(input_spec, num_classes, seed=seed)
    return (
        _create_from_factory(spec, input_spec, num_classes)
        if spec.factory
        else _create_timm(spec, input_spec, num_classes)
    )


def _create_timm(spec: ModelSpec, input_spec: InputSpec, num_classes: int) -> LoadedModel:
    origin, kwargs = spec.origin, dict(spec.kwargs)
    cfg = load_timm_config(origin)
    kwargs.setdefault("in_chans", input_spec.channels)
    if cfg.get("fixed_input_size") and (input_spec.height, input_spec.width) != tuple(
        cfg["input_size"][1:]
    ):
        kwargs.setdefault("img_size", (input_spec.height, input_spec.width))
    name = f"local-dir:{origin.path}" if origin.kind == "folder" else origin.name
    checkpoint, source, sha256 = _load_checkpoint(origin, name, kwargs)
    config = _read_folder_config(origin)
    if not num_classes and EMBEDDING in config:
        # the output of such a model is an embedding already
        num_classes = config["num_classes"]
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs).eval()
    widths = config.get(WIDTHS, {})
    resize(model, widths, source=source)
    if checkpoint is None:
        report = WeightsReport("random", hash_state(model.state_dict()), 0)
        return LoadedModel(model, input_spec, report)
    heads, first = name_heads(cfg), cfg.get("first_conv") or ()
    if REUSED in config:
        model = build_simkd_student(
            model, config[REUSED], checkpoint.tensors, num_classes, source=source
        )
        heads = ("classifier",)
    match = spec.match or ClassMatch(fits=True)
    report = load_weights(
        model,
        checkpoint,
        head=heads,
        source=source,
        sha256=sha256,
        first_conv=(first,) if isinstance(first, str) else tuple(first),
        rows=match.rows,
        renew_head=not match.fits,
        role=spec.role,
    )
    report = _add_classes(report, match)
    report = replace(report, notes=(*report.notes, *_note_patches(spec, model, input_spec)))
    return LoadedModel(model, input_spec, report, widths)


def _note_patches(spec: ModelSpec, model: nn.Module, input_spec: InputSpec) -> list[str]:
    """A note, as a predicate, about pixels that do not fill a patch."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if not isinstance(patch, tuple):
        return []
    size = (input_spec.height, input_spec.width)
    read = [side - side % one for side, one in zip(size, patch, strict=True)]
    if list(size) == read:
        return []
    return [
        f"reads {read[0]}x{read[1]} of {size[0]}x{size[1]} pixels, because its patches have"
        f" {patch[0]}x{patch[1]}: set {spec.role}.image_size to a multiple, such as {read[0]}"
    ]


def _select_tokens(spec: ModelSpec, loaded: LoadedModel) -> LoadedModel:
    """The model with the embedding that its spec names as the output."""
    if isinstance(spec, CompositeTeacher) or spec.embedding == "pooled":
        return loaded
    # other outputs than those of the same weights
    identity = f"{loaded.weights.sha256}:{spec.embedding}"
    weights = replace(loaded.weights, sha256=hashlib.sha256(identity.encode()).hexdigest())
    return replace(loaded, model=TokenEmbedding(loaded.model, spec.embedding), weights=weights)


def _add_classes(report: WeightsReport, match: ClassMatch) -> WeightsReport:
    """Add the order of the classes to the identity and the notes of the weights."""
    if match.rows is not None and not report.new_head:
        sha256 = hashlib.sha256(f"{report.sha256}:{list(match.rows)}".encode()).hexdigest()
        report = replace(report, sha256=sha256)
    notes = (match.note if match.fits else match.reason, *report.notes)
    return replace(report, notes=tuple(note for note in notes if note))


def _read_folder_config(origin: WeightsSource) -> dict[str, Any]:
    """The config.json of a model folder, or nothing for other weights."""
    if origin.kind != "folder" or not origin.path:
        return {}
    config = read_model_config(origin.path).raw
    # Widths that are no dict become widths of an unknown module: `resize` rejects them.
    return config if isinstance(config.get(WIDTHS, {}), dict) else {WIDTHS: {WIDTHS: {}}}


def _load_checkpoint(
    origin: WeightsSource, name: str, kwargs: dict[str, Any]
) -> tuple[Checkpoint | None, str, str]:
    """The weights with all classes, a description of the source, and the
    sha256.
    """
    if origin.kind == "random":
        return None, "random", ""
    if origin.kind == "file":
        assert origin.path is not None
        return read_checkpoint(origin.path), f"file {origin.path.name}", hash_weights(origin.path)
    if origin.kind == "folder":
        assert origin.path is not None
        path = _find_folder_weights(origin.path)
        return read_checkpoint(path), f"folder {origin.path.name}", hash_weights(path)
    full = fetch(origin, timm.create_model, name, pretrained=True, **kwargs)
    state = full.state_dict()
    return Checkpoint(state), f"hub {origin.name}", hash_state(state)


def _find_folder_weights(folder: Path) -> Path:
    """The weights of a model folder; `timm.models.save_for_hf` writes a torch
    file by default.
    """
    torch_file = folder / "pytorch_model.bin"
    path = folder / WEIGHTS
    return torch_file if torch_file.is_file() and not path.exists() else path


def _create_from_factory(spec: ModelSpec, input_spec: InputSpec, num_classes: int) -> LoadedModel:
    assert spec.factory is not None
    num_classes = num_classes or _read_projector_width(spec.origin.path)
    defaults = {"num_classes": num_classes, "in_chans": input_spec.channels}
    parameters = inspect.signature(spec.factory).parameters
    kwargs = {**{k: v for k, v in defaults.items() if k in parameters}, **spec.kwargs}
    model = spec.factory(**kwargs)
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"{spec.role}._target_={spec.name} returned a {type(model).__name__}, expected a"
            " torch.nn.Module that returns logits."
        )
    path = spec.origin.path
    if path is None:
        if wrong := find_nonfinite(model):
            raise RequestError(
                f"{spec.role}._target_={spec.name} returned a model with NaN or infinite weights"
                f" ({describe_nonfinite(wrong)}). Expected finite numbers. Load weights of a"
                " training that did not diverge."
            )
        state = model.state_dict()
        report = WeightsReport(f"own {spec.name}", hash_state(state), len(state))
        return LoadedModel(model.eval(), input_spec, report)
    if spec.match is not None and spec.match.rows is not None:
        raise RequestError(
            f"The {spec.role} {spec.name} {spec.match.note}, but kd_app does not know the"
            " classifier of your own module. Sort the rows of the classifier by the data's classes"
            " and save the weights again."
        )
    report = load_weights(
        model,
        read_checkpoint(path),
        head=(),
        source=f"file {path.name}",
        sha256=hash_weights(path),
        role=spec.role,
    )
    return LoadedModel(model.eval(), input_spec, report)


def _read_projector_width(weights: Path | None) -> int:
    """The width of the output of a module that was trained to output an embedding, as
    the config.json beside its weights records it; 0 for any other.
    """
    try:
        config = read_model_config(weights.parent).raw if weights else {}
        return int(config.get(EMBEDDING, {}).get("width", 0))
    except (RequestError, AttributeError, TypeError, ValueError):
        return 0


def _check_logits(
    spec: ModelSpec, model: nn.Module, input_spec: InputSpec, num_classes: int
) -> None:
    """Run two blank images through the model to check that it accepts this input size
    and returns `num_classes` logits.
    """
    with torch.no_grad():
        try:
            logits = model(torch.zeros(2, input_spec.channels, input_spec.height, input_spec.width))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise RequestError(
                f"The {spec.role} {spec.name} can't take images of"
                f" {input_spec.channels}x{input_spec.height}x{input_spec.width}"
                f"{f' with {spec.kwargs!r}' if spec.kwargs else ''}:"
                f" {_describe_failure(error)}."
                f"{_suggest_size(spec, input_spec, num_classes)} Change data.image_size,"
                f" {spec.role}.image_size or {spec.role}.kwargs.* (patch_size, img_size, in_chans)."
            ) from None
    if not isinstance(logits, Tensor):
        raise RequestError(
            f"The {spec.role} {spec.name} returns a {type(logits).__name__} for a batch of images,"
            f" expected one tensor of logits. Remove what changes the output from"
            f" {spec.role}.kwargs ({spec.kwargs!r}; features_only returns maps), or wrap your own"
            " module so that it returns logits."
        )
    shape = tuple(logits.shape)
    if not num_classes and len(shape) == 2:
        return
    if shape != (2, num_classes):
        raise RequestError(
            f"The {spec.role} {spec.name} returns {shape} for two images, expected logits of"
            f" shape (2, {num_classes}), one per class of the data. Fine-tune a model of other"
            " classes, or build it with the num_classes of the data."
        )


def measure_width(loaded: LoadedModel) -> int:
    """The width of a model's output."""
    pixels = loaded.pixels
    with torch.no_grad():
        output = loaded.model(torch.zeros(1, pixels.channels, pixels.height, pixels.width))
    return int(output.shape[1])


def _describe_failure(error: Exception) -> str:
    """The first line of a library's message, with the type if the message is short."""
    line = take_first_line(error).rstrip(".")
    is_clear = isinstance(error, AssertionError | RuntimeError | ValueError | TypeError)
    return line if is_clear else f"{type(error).__name__}: {line}"


def _suggest_size(spec: ModelSpec, input_spec: InputSpec, num_classes: int) -> str:
    """' student.image_size=64 works.' with the smallest larger size at which the
    architecture works, or ''.
    """
    if isinstance(spec, CompositeTeacher) or spec.factory is not None:
        return ""
    architecture = spec.origin.name.split(".")[0]
    if not timm.is_model(architecture):
        return ""
    for size in _COMMON_SIZES:
        if size > max(input_spec.height, input_spec.width) and _is_size_possible(
            architecture, spec.kwargs, input_spec.channels, size, num_classes
        ):
            return f" {spec.role}.image_size={size} works."
    return ""


def _is_size_possible(
    architecture: str, kwargs: dict[str, Any], channels: int, size: int, num_classes: int
) -> bool:
    """Whether an architecture accepts images of this size; allocates no memory."""
    cfg = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    fixed = {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}
    try:
        with torch.device("meta"), torch.no_grad():
            model = timm.create_model(
                architecture,
                num_classes=num_classes,
                **{"in_chans": channels, **fixed, **kwargs},
            )
            model.eval()(torch.zeros(2, channels, size, size))
    except Exception:
        # some architectures can't be tried out in this way
        return False
    return True


def _match_channels(values: Any, channels: int) -> list[float]:
    """Return one statistic per channel. If the number of channels differs, return the
    mean for each.
    """
    values = [float(v) for v in values]
    return values if len(values) == channels else [round(sum(values) / len(values), 6)] * channels
