"""The config.json of a model folder, in timm's local-dir layout."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kd_app.config.records import load_record, parse_record
from kd_app.models.class_names import find_names, parse_labels
from kd_app.models.license import UNKNOWN

CONFIG = "config.json"
_EXPECTED = (
    "Expected a run's folder, or a folder in timm's local-dir layout: config.json (architecture,"
    " num_classes, pretrained_cfg) and model.safetensors."
)
_MAX_SIDE, _MAX_CHANNELS, _MAX_CLASSES = 2**15, 2**12, 2**24

# strict: timm reads the file as it is, so '8' must not pass for 8
RecordedSide = Annotated[int, Field(strict=True, ge=1, le=_MAX_SIDE)]
Channels = Annotated[int, Field(strict=True, ge=1, le=_MAX_CHANNELS)]
Statistics = Annotated[
    tuple[Annotated[float, Field(strict=True, gt=-1e6, lt=1e6)], ...], Field(min_length=1)
]
Names = list[str] | dict[str, str | int]


class PretrainedConfig(BaseModel):
    """The entries of ``pretrained_cfg`` that decide what a model sees. Others are left
    to timm.
    """

    model_config = ConfigDict(extra="allow")

    input_size: tuple[Channels, RecordedSide, RecordedSide] = (3, 224, 224)
    fixed_input_size: bool = False
    mean: Statistics = (0.5,)
    std: Annotated[
        tuple[Annotated[float, Field(strict=True, gt=0, lt=1e6)], ...], Field(min_length=1)
    ] = (0.5,)
    crop_pct: Annotated[float, Field(strict=True, gt=0, le=2)] = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    license: str | None = None
    label_names: Names | None = None
    num_classes: Annotated[int, Field(strict=True, ge=0, le=_MAX_CLASSES)] | None = None
    classifier: str | tuple[str, ...] | None = None
    first_conv: str | tuple[str, ...] | None = None


class ModelConfig(BaseModel):
    """What kd_app and timm read of a config.json.

    raw: the whole content, for entries with a reader of their own.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    architecture: Annotated[str, Field(min_length=1, max_length=200)]
    num_classes: Annotated[int, Field(strict=True, ge=0, le=_MAX_CLASSES)]
    label_names: Names | None = None
    license: str | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] | None = None
    pretrained_cfg: PretrainedConfig
    raw: dict[str, Any] = Field({}, exclude=True)

    @property
    def recorded_license(self) -> str:
        """The license of the weights: kd_app's entry, else timm's, else 'unknown'."""
        return self.license or self.pretrained_cfg.license or UNKNOWN

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of the outputs, if they are known:
        timm's entry, else one of another library (id2label).
        """
        names = parse_labels(self.label_names or self.pretrained_cfg.label_names)
        return names or find_names(self.raw) or None


def read_model_config(folder: Path) -> ModelConfig:
    """Read the config.json in `folder`.

    Raises `RequestError`, which names the file and the key, if it is missing or does
    not fit.
    """
    path = folder / CONFIG
    content = load_record(path, expected=_EXPECTED)
    config = parse_record(path, content, ModelConfig, expected=_EXPECTED)
    config.raw = content
    return config
