"""What to read before any other sentence about a run: models that are not shown to have
learned anything.
"""

from typing import Final

from kd_app.metrics.paired import is_shown_above
from kd_app.reporting.metrics import Split
from kd_app.reporting.results import Data
from kd_app.reporting.sentences import format_percent

_ROLES: Final = ("teacher", "student")


def describe_cautions(data: Data | None, split: Split | None, split_name: str) -> list[str]:
    """A sentence for the teacher and the student if it is not shown to be better than
    always answering the largest class of the split.

    The paired exact test compares the model with that constant answer on the same
    images, one-sided at the confidence of the split.
    """
    if data is None or split is None or not split.num_images:
        return []
    support = split.per_class.support
    largest = max(range(len(support)), key=support.__getitem__)
    constant = f"{format_percent(support[largest] / split.num_images)} for that answer"
    sentences = []
    for role in _ROLES:
        accuracy = split.per_class.accuracy.get(role)
        if accuracy is None:
            continue
        hits = [round(n * (share or 0.0)) for n, share in zip(support, accuracy, strict=True)]
        better, worse = sum(hits) - hits[largest], support[largest] - hits[largest]
        if is_shown_above(better, worse, split.num_images, 0.0, split.confidence):
            continue
        sentences.append(
            f"Caution: the {role} is not shown to be better than always answering the largest"
            f" class, {data.classes[largest]!r}: {format_percent(sum(hits) / split.num_images)} of"
            f" {split.num_images:,} {split_name} images right, {constant}."
            " Comparisons with it do not show that anything was learned."
        )
    return sentences
