"""``training.json``: how a training ended."""

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
    top1: float
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
