"""Images on which the models differ: from ``examples.parquet``, or, without thumbnails,
from ``predictions.parquet``.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_app.metrics.model_pair import find_pair
from kd_app.reporting.html.from_predictions import ModelAnswers
from kd_app.reporting.html.schema import Answer, Example

if TYPE_CHECKING:
    from pandas import DataFrame

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST = 40_000
"""Bytes of a thumbnail: it is 96 pixels a side at most, so a larger one is not what it
says.
"""
_LISTED = 12


def build_examples(table: "DataFrame", names: Sequence[str]) -> list[Example]:
    """The rows of ``examples.parquet``."""
    roles = [
        str(name).removesuffix("_probabilities")
        for name in table.columns
        if str(name).endswith("_probabilities")
    ]
    return [_build_example(row, roles, names) for row in table.to_dict("records")]


def _build_example(row: Mapping[Any, Any], roles: Sequence[str], names: Sequence[str]) -> Example:
    classes = [int(number) for number in row["classes"]]
    shares = {role: [float(value) for value in row[f"{role}_probabilities"]] for role in roles}
    said = {role: int(row[f"{role}_top1"]) for role in roles}
    return Example(
        index=int(row["index"]),
        file=str(row["file"]),
        label=names[int(row["target"])],
        why=str(row["why"]),
        image=_encode_thumbnail(row["png"]),
        answers=[
            Answer(
                role=role,
                said=names[top1],
                probability=dict(zip(classes, shares[role], strict=True)).get(top1),
            )
            for role, top1 in said.items()
        ],
        classes=[names[number] for number in classes],
        probabilities=shares,
        divergence=row.get("divergence"),
    )


def _encode_thumbnail(content: object) -> str | None:
    """A PNG as base64; None for anything else."""
    if not isinstance(content, bytes) or not content.startswith(_PNG) or len(content) > _LARGEST:
        return None
    return base64.b64encode(content).decode("ascii")


def select_flips(found: ModelAnswers, table: "DataFrame", names: Sequence[str]) -> list[Example]:
    """The images that the teacher (of a cascade the last stage) has right and the
    student (the cascade) wrong, the surest errors first, and those the other way round;
    without pictures.
    """
    pair = find_pair(found.top1)
    if pair.reference not in found.top1:
        return []
    candidate, reference = map(found.mark_correct, pair)
    listed = []
    for why, which, by in (
        ("negative_flip", reference & ~candidate, pair.candidate),
        ("positive_flip", ~reference & candidate, pair.reference),
    ):
        places = which.nonzero()[0]
        sure = found.probability[by][places]
        listed += [
            _list_example(found, table, names, int(place), why)
            for place in places[(-sure).argsort(kind="stable")][:_LISTED]
        ]
    return listed


def _list_example(
    found: ModelAnswers, table: "DataFrame", names: Sequence[str], place: int, why: str
) -> Example:
    return Example(
        index=int(table["index"].iloc[place]),
        file=str(table["file"].iloc[place]),
        label=names[int(found.target[place])],
        why=why,
        answers=[
            Answer(
                role=role,
                said=names[int(found.top1[role][place])],
                probability=float(found.probability[role][place]),
            )
            for role in reversed(find_pair(found.top1))
        ],
    )
