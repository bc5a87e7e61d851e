"""What the teacher knows, and the outcome, as tables: figures, images with what the
models say to them, and confusions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config.redact import relativize
from kd_app.reporting.examples import EXAMPLES
from kd_app.run_files import PREDICTIONS
from kd_app.tracking.base import Outcome

_TOP1 = "_top1"
_MOST_CLASSES = 100
"""A confusion matrix of more classes is neither readable nor light."""


@dataclass(frozen=True)
class Picture:
    """The bytes of a PNG; None where the data can't give the image."""

    png: bytes | None


@dataclass(frozen=True)
class Table:
    """Columns and rows; cells are numbers, words, None and pictures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def build_tables(outcome: Outcome) -> dict[str, Table]:
    """The tables that this outcome has, by name."""
    return dict(_iterate_tables(outcome))


def build_knowledge_tables(knowledge: Mapping[str, Any]) -> dict[str, Table]:
    """What the teacher knows: the entropy of its answers by temperature, and the
    classes that it finds similar.
    """
    rows = {
        "teacher_entropy": knowledge.get("entropy"),
        "teacher_similar_classes": knowledge.get("similar"),
    }
    return {name: _build_table(found) for name, found in rows.items() if found}


def build_confusion_tables(outcome: Outcome) -> dict[str, Table]:
    """For every model a table with the columns actual, predicted, images: all pairs of
    classes; none where there are more than 100 classes.
    """
    path, classes = outcome.files.get(PREDICTIONS), outcome.classes
    return (
        dict(_iterate_confusions(path, classes))
        if path and 0 < len(classes) <= _MOST_CLASSES
        else {}
    )


def _iterate_tables(outcome: Outcome) -> Iterator[tuple[str, Table]]:
    if outcome.test:
        yield "test_figures", _build_metrics_table(outcome.test)
    if EXAMPLES in outcome.files:
        yield "examples", _build_examples_table(outcome.files[EXAMPLES], outcome.classes)


def _build_metrics_table(test: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each model, a column for each figure."""
    columns = list(dict.fromkeys(name for figures in test.values() for name in figures))
    return Table(
        ("model", *columns),
        [[role, *(figures.get(name) for name in columns)] for role, figures in test.items()],
    )


def _build_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = tuple(rows[0])
    return Table(columns, [[row.get(name) for name in columns] for row in rows])


def _build_examples_table(path: Path, classes: Sequence[str]) -> Table:
    """An image in each row: its name, its label, what each model says and how surely,
    why it is shown, and how much both differ (nats).
    """
    import pandas as pd

    found = pd.read_parquet(path)
    roles = [name.removesuffix(_TOP1) for name in found.columns if name.endswith(_TOP1)]
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
    for row, file in zip(found.to_dict("records"), relativize(found["file"].tolist()), strict=True):
        said = [classes[int(row[f"{role}{_TOP1}"])] for role in roles]
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
                *said,
                *shares,
                row.get("divergence"),
            ]
        )
    return Table(columns, rows)


def _iterate_confusions(path: Path, classes: Sequence[str]) -> Iterator[tuple[str, Table]]:
    import pandas as pd

    found = pd.read_parquet(path)
    numbers = range(len(classes))
    for role in (name.removesuffix(_TOP1) for name in found.columns if name.endswith(_TOP1)):
        counts = (
            pd.crosstab(found["target"], found[f"{role}{_TOP1}"])
            .reindex(index=numbers, columns=numbers, fill_value=0)
            .to_numpy()
        )
        rows = [
            [classes[actual], classes[said], int(counts[actual, said])]
            for actual in numbers
            for said in numbers
        ]
        yield role, Table(("actual", "predicted", "images"), rows)
