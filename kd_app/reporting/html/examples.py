"""Example images on which models differ: from ``examples.parquet``, or without
thumbnails from ``predictions.parquet``.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_app.metrics.model_pair import find_pair
from kd_app.reporting.html.from_predictions import ModelPredictions
from kd_app.reporting.html.schema import ExamplePart, PredictionPart

if TYPE_CHECKING:
    from pandas import DataFrame

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_BYTES = 40_000
"""Thumbnails have at most 96 pixels a side. A larger file is no thumbnail."""
_MAX_FLIPS = 12


def build_examples(table: "DataFrame", names: Sequence[str]) -> list[ExamplePart]:
    """Build the examples from the rows of ``examples.parquet``."""
    roles = [
        str(name).removesuffix("_probabilities")
        for name in table.columns
        if str(name).endswith("_probabilities")
    ]
    return [_build_example(row, roles, names) for row in table.to_dict("records")]


def _build_example(
    row: Mapping[Any, Any], roles: Sequence[str], names: Sequence[str]
) -> ExamplePart:
    classes = [int(number) for number in row["classes"]]
    shares = {role: [float(value) for value in row[f"{role}_probabilities"]] for role in roles}
    top1 = {role: int(row[f"{role}_top1"]) for role in roles}
    return ExamplePart(
        index=int(row["index"]),
        file=str(row["file"]),
        label=names[int(row["target"])],
        why=str(row["why"]),
        image=_encode_thumbnail(row["png"]),
        predictions=[
            PredictionPart(
                role=role,
                predicted=names[number],
                probability=dict(zip(classes, shares[role], strict=True)).get(number),
            )
            for role, number in top1.items()
        ],
        classes=[names[number] for number in classes],
        probabilities=shares,
        divergence=row.get("divergence"),
    )


def _encode_thumbnail(content: object) -> str | None:
    """Encode a PNG as base64. Anything else gives None."""
    if not isinstance(content, bytes) or not content.startswith(_PNG) or len(content) > _MAX_BYTES:
        return None
    return base64.b64encode(content).decode("ascii")


def select_flips(
    predictions: ModelPredictions, table: "DataFrame", names: Sequence[str]
) -> list[ExamplePart]:
    """Select negative flips (only the teacher is right) and positive flips (only the
    student is right), the most confident errors first. In a cascade, the cascade is the
    student and its last stage the teacher. The examples have no thumbnails.
    """
    pair = find_pair(predictions.top1)
    if pair.reference not in predictions.top1:
        return []
    candidate, reference = map(predictions.mark_correct, pair)
    examples = []
    for why, mask, wrong_role in (
        ("negative_flip", reference & ~candidate, pair.candidate),
        ("positive_flip", ~reference & candidate, pair.reference),
    ):
        rows = mask.nonzero()[0]
        confidence = predictions.probability[wrong_role][rows]
        most_confident = rows[(-confidence).argsort(kind="stable")][:_MAX_FLIPS]
        examples += [
            _build_flip(predictions, table, names, int(row), why) for row in most_confident
        ]
    return examples


def _build_flip(
    predictions: ModelPredictions, table: "DataFrame", names: Sequence[str], row: int, why: str
) -> ExamplePart:
    return ExamplePart(
        index=int(table["index"].iloc[row]),
        file=str(table["file"].iloc[row]),
        label=names[int(predictions.target[row])],
        why=why,
        predictions=[
            PredictionPart(
                role=role,
                predicted=names[int(predictions.top1[role][row])],
                probability=float(predictions.probability[role][row]),
            )
            for role in reversed(find_pair(predictions.top1))
        ],
    )
