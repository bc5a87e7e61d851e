"""``training.json``: how a training ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from kd_app.config.records import read_record

RECORD: Final = "training.json"
Nothing = Annotated[dict[str, Any], Field(max_length=0)]
"""Without a validation there is no best epoch."""
Epochs = Annotated[int, Field(ge=0, le=10**9)]


@with_config(ConfigDict(extra="allow"))
class BestEpoch(TypedDict):
    """The validation metrics of the best epoch (from 0), and the kind of its weights if
    there were two kinds.
    """

    epoch: Annotated[float, Field(ge=0, le=10**9)]
    top1: NotRequired[float]
    nll: NotRequired[float | None]
    weights: NotRequired[Literal["raw", "average"]]


@with_config(ConfigDict(extra="allow"))
class InitialWeights(TypedDict):
    """Where the training started."""

    source: str


@with_config(ConfigDict(extra="allow"))
class SavedTraining(TypedDict):
    """What is read of a ``training.json``; files: hashes of the model's files."""

    best: BestEpoch | Nothing
    epochs: Epochs
    max_epochs: Epochs
    images_per_second: Annotated[float, Field(gt=0, le=1e12)] | None
    weights: InitialWeights
    files: dict[str, str]


def read_training(folder: Path) -> dict[str, Any]:
    """Read the record in the folder of a training's stage.

    Raises `RequestError` if it is missing or damaged.
    """
    record = read_record(
        folder / RECORD,
        SavedTraining,
        expected="Expected the record of a finished training. Set remake= to train again.",
    )
    return dict(record)


def describe_outcome(record: Mapping[str, Any]) -> list[str]:
    """Sentences about a training that ended before its last epoch, and about the kind
    of weights that is exported. record: of ``training.json``.
    """
    sentences, best = [], record.get("best", {})
    epochs, max_epochs = record.get("epochs", 0), record.get("max_epochs", 0)
    if epochs < max_epochs and best:
        sentences.append(
            f"stopped early, after epoch {epochs} of {max_epochs}; the exported weights are those"
            f" of epoch {int(best['epoch']) + 1}"
        )
    if "weights" in best:
        metric = next(name for name in best if name not in ("epoch", "weights"))
        kind, other = ("averaged", "raw") if best["weights"] == "average" else ("raw", "averaged")
        sentences.append(
            f"the {kind} weights are exported: their validation {metric} of {best[metric]:.4f}"
            f" (epoch {int(best['epoch']) + 1}) is at least that of the {other} weights in every"
            " epoch"
        )
    return sentences
