"""The part of ``results.json`` about the dark knowledge of the teacher."""

from typing import Annotated

from pydantic import AfterValidator

from kd_app.reporting.constraints import Count, Finite, NonNegative, Number, Part, check_lengths


class TeacherEntropy(Part):
    """How soft the teacher's probabilities are at a temperature.

    mean_nats: mean entropy · of_uniform: mean entropy over ``log K`` · beyond_top: mean
    probability outside the top class.
    """

    temperature: NonNegative
    mean_nats: Number
    of_uniform: Number
    beyond_top: Number


def _check_square(matrix: list[list[float | None]]) -> list[list[float | None]]:
    check_lengths(len(matrix), **{f"row {number}": row for number, row in enumerate(matrix)})
    return matrix


Matrix = Annotated[list[list[Number]], AfterValidator(_check_square)]


class SimilarPair(Part):
    """Two class names, and the mean probability of either class on the images of the
    other.
    """

    first: str
    second: str
    probability: Finite


class Similarity(Part):
    """Class similarity according to the teacher at a temperature.

    similar: the strongest pairs · matrix: mean probabilities (columns) over the images
    of each class (rows), null for a class without images; no matrix above 100 classes.
    """

    temperature: NonNegative
    similar: list[SimilarPair]
    matrix: Matrix | None


class Knowledge(Part):
    """The dark knowledge of the teacher: probabilities beyond the top class on the
    images of `split`.

    similar, matrix: at temperature 1 · softened: at the temperatures of the student's
    loss terms.
    """

    split: str
    num_images: Count
    entropy: list[TeacherEntropy]
    similar: list[SimilarPair]
    matrix: Matrix | None
    softened: list[Similarity] = []
