"""The pixels that a finished run's models take, as the run recorded them.

A later measurement reads other images. Their statistics and their channels must not
change what the models see.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kd_app.config import Decoding, InputSpec, choose_decoding
from kd_app.config.records import parse_with, read_record
from kd_app.deployment.manifest import parse_decoding
from kd_app.models.composite import ArtifactTeacher, TeacherEnsemble
from kd_app.models.create import resolve_input
from kd_app.models.model_config import CONFIG
from kd_app.models.save import DECODING
from kd_app.models.spec import ImageStats, ModelSpec
from kd_app.reporting.results import ImageStatistics, Results
from kd_app.run_files import STUDENT

_EXPECTED: Final = (
    "Expected the file that kd_app wrote. Restore it, or run the run's kd-distill command again."
)
_FIRST: Final = ImageStats(3, 1, (0.0,) * 3, (1.0,) * 3)
_SECOND: Final = ImageStats(1, 2, (0.5,), (0.5,))


@dataclass(frozen=True)
class RecordedPixels:
    """What a finished run recorded about its images; None for what it did not record.

    stats: the statistics from which the models without a normalization of their own got
    theirs. decoding: how image files were decoded.
    """

    stats: ImageStats | None = None
    decoding: Decoding | None = None

    @property
    def is_normalization_unknown(self) -> bool:
        """Whether the images came normalized from a data module of the user's own."""
        stats = self.stats
        return stats is not None and not any(stats.mean) and set(stats.std) == {1.0}


def read_recorded_pixels(folder: Path, results: Results) -> RecordedPixels:
    """What the run in `folder` recorded. Raises `RequestError` if it is corrupt."""
    return RecordedPixels(parse_stats(results.image_stats), read_decoding(folder / STUDENT))


def describe_stats(stats: ImageStats) -> ImageStatistics:
    """The part of the results about the statistics of the images."""
    height, width = stats.shape
    return ImageStatistics(
        channels=stats.channels,
        height=height,
        width=width,
        mean=list(stats.mean),
        std=list(stats.std),
    )


def parse_stats(record: ImageStatistics | None) -> ImageStats | None:
    """Read the output of `describe_stats`."""
    if record is None:
        return None
    mean, std = tuple(record.mean), tuple(record.std)
    return ImageStats(record.channels, record.height, mean, std, record.width)


def read_decoding(folder: Path) -> Decoding | None:
    """How image files are decoded for the model in `folder`; None if its config.json
    does not record it.

    Raises `RequestError` if the entry is corrupt.
    """
    file = folder / CONFIG
    if not file.is_file():
        return None
    config = read_record(file, dict[str, Any], expected=_EXPECTED)
    if DECODING not in config:
        return None
    return parse_with(file, lambda: parse_decoding(config[DECODING]), expected=_EXPECTED)


def set_channels(data: dict[str, Any], decoding: Decoding | None) -> dict[str, Any]:
    """The data group of a configuration, with image files decoded to the channels of
    `decoding`.

    Channels stay as they are if the source does not convert its images, or has its own
    kind of images (more than 3 channels).
    """
    source = data.get("source")
    is_converted = isinstance(source, dict) and "channels" in source
    if decoding is None or decoding.channels not in (1, 3) or not is_converted:
        return data
    return {**data, "source": {**data["source"], "channels": decoding.channels}}


def describe_conversion(data: Mapping[str, Any], adapted: Mapping[str, Any]) -> tuple[str, ...]:
    """A note if `set_channels` changed the data group `data` to `adapted`."""
    if data == adapted:
        return ()
    kind = "gray" if adapted["source"]["channels"] == 1 else "color"
    return (
        f"Image files are decoded in {kind}, as the model expects, not with"
        f" data.source.channels={data['source']['channels']}.",
    )


def describe_normalization(recorded: RecordedPixels, pixels: InputSpec) -> list[str]:
    """A note about other images for a model whose images came normalized from a data
    module of the user's own. pixels: what the model gets now.
    """
    if not recorded.is_normalization_unknown:
        return []
    mean, std = (", ".join(f"{value:.4g}" for value in each) for each in (pixels.mean, pixels.std))
    is_plain = not any(pixels.mean) and set(pixels.std) == {1.0}
    why = "no other is recorded" if is_plain else "the model's configuration names it"
    return [
        "The run's data module returned normalized images, and how it did that is not recorded."
        f" These images get the mean [{mean}] and the deviation [{std}] of pixels in 0..1, because"
        f" {why}. If the module normalized in another way, the metrics here are wrong: measure"
        " through the module (data._target_=<its factory>, allow=[<its package>]), or through one"
        " that returns these images."
    ]


def needs_image_stats(spec: ModelSpec) -> bool:
    """Whether the input of a model depends on the statistics of the data's images."""
    if isinstance(spec, TeacherEnsemble):
        # The ensemble's own normalization is undone for each member.
        return any(needs_image_stats(member) for member in spec.members.values())
    return resolve_input(spec, _FIRST) != resolve_input(spec, _SECOND)


def describe_unknown_input(role: str, run: Path) -> str:
    """A note about a model that is left out, as its normalization is not recorded."""
    return (
        f"Note: {role} is left out. It is normalized with the statistics of the run's images, which"
        f" the run {str(run)!r} did not record (it was made by an earlier version of kd_app), and"
        " these are other images. To measure it, repeat the run's kd-distill command with"
        " overwrite=true, which uses the stages again and records the statistics."
    )


def choose_model_decoding(spec: ModelSpec) -> Decoding | None:
    """How image files are decoded for a model outside of a run, as by kd-predict; None
    for bare weights, which do not record it.
    """
    if isinstance(spec, ArtifactTeacher):
        return spec.artifact.decoding
    if needs_image_stats(spec):
        return None
    folder = spec.origin.path if spec.origin.kind == "folder" else None
    recorded = read_decoding(folder) if folder else None
    return recorded or choose_decoding(resolve_input(spec, _FIRST))
