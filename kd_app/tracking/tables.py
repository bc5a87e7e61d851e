"""Tables of soft labels, test metrics, examples and confusions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config.redact import relativize
from kd_app.run_files import EXAMPLES, PREDICTIONS
from kd_app.tracking.base import Outcome

_TOP1 = "_top1"
_MAX_CLASSES = 100
"""A confusion matrix of more classes is unreadable and large."""


@dataclass(frozen=True)
class Picture:
    """The bytes of a PNG; None if the data module can't return the image."""

    png: bytes | None


@dataclass(frozen=True)
class TrackedTable:
    """Columns and rows; cells are numbers, strings, None or pictures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def build_tables(outcome: Outcome) -> dict[str, TrackedTable]:
    """Build the tables of an outcome, by name."""
    return dict(_iterate_tables(outcome))


def build_knowledge_tables(knowledge: Mapping[str, Any]) -> dict[str, TrackedTable]:
    """Build tables of the teacher's soft labels: entropy and similar classes."""
    tables = {
        "teacher_entropy": knowledge.get("entropy"),
        "teacher_similar_classes": knowledge.get("similar"),
    }
    return {name: _build_table(rows) for name, rows in tables.items() if rows}


def build_confusion_tables(outcome: Outcome) -> dict[str, TrackedTable]:
    """Build a confusion table for each model, if there are at most 100 classes.

    The columns are actual, predicted and images; each pair of classes has a row.
    """
    path, classes = outcome.files.get(PREDICTIONS), outcome.classes
    if not path or not 0 < len(classes) <= _MAX_CLASSES:
        return {}
    return dict(_iterate_confusions(path, classes))


def _iterate_tables(outcome: Outcome) -> Iterator[tuple[str, TrackedTable]]:
    if outcome.test:
        yield "test_figures", _build_metrics_table(outcome.test)
    if EXAMPLES in outcome.files:
        yield "examples", _build_examples_table(outcome.files[EXAMPLES], outcome.classes)


def _build_metrics_table(test: Mapping[str, Mapping[str, float]]) -> TrackedTable:
    """A row for each model, a column for each metric."""
    columns = list(dict.fromkeys(name for metrics in test.values() for name in metrics))
    return TrackedTable(
        ("model", *columns),
        [[role, *(metrics.get(name) for name in columns)] for role, metrics in test.items()],
    )


def _build_table(rows: Sequence[Mapping[str, Any]]) -> TrackedTable:
    columns = tuple(rows[0])
    return TrackedTable(columns, [[row.get(name) for name in columns] for row in rows])


def _build_examples_table(path: Path, classes: Sequence[str]) -> TrackedTable:
    """One image per row.

    The columns are file, reason, label, prediction and probabilities of each model, and
    the divergence between both models (nats).
    """
    import pandas as pd

    data = pd.read_parquet(path)
    roles = [name.removesuffix(_TOP1) for name in data.columns if name.endswith(_TOP1)]
    columns = [
        "image",
        "file",
        "why",
        "label",
        *roles,
        *(f"{role} probabilities" for role in roles),
        "divergence",
    ]
    rows = []
    files = relativize(data["file"].tolist())
    for row, file in zip(data.to_dict("records"), files, strict=True):
        predictions = [classes[int(row[f"{role}{_TOP1}"])] for role in roles]
        names = [classes[int(number)] for number in row["classes"]]
        shares = [
            ", ".join(
                f"{name} {share:.3f}"
                for name, share in zip(names, row[f"{role}_probabilities"], strict=True)
            )
            for role in roles
        ]
        rows.append(
            [
                Picture(row["png"]),
                file,
                row["why"],
                classes[int(row["target"])],
                *predictions,
                *shares,
                row.get("divergence"),
            ]
        )
    return TrackedTable(columns, rows)


def _iterate_confusions(path: Path, classes: Sequence[str]) -> Iterator[tuple[str, TrackedTable]]:
    import pandas as pd

    data = pd.read_parquet(path)
    numbers = range(len(classes))
    for role in (name.removesuffix(_TOP1) for name in data.columns if name.endswith(_TOP1)):
        counts = (
            pd.crosstab(data["target"], data[f"{role}{_TOP1}"])
            .reindex(index=numbers, columns=numbers, fill_value=0)
            .to_numpy()
        )
        rows = [
            [classes[actual], classes[predicted], int(counts[actual, predicted])]
            for actual in numbers
            for predicted in numbers
        ]
        yield role, TrackedTable(("actual", "predicted", "images"), rows)
