"""Tables and sentences about embeddings, for the console and the page."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from kd_app.reporting.embedding_results import (
    EmbeddingMetrics,
    EmbeddingRecord,
    EmbeddingSplit,
)
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.results import ModelRecord, Results
from kd_app.reporting.sentences import format_count, format_difference, format_percent

TITLES: Final = {
    "teacher": "teacher",
    "pca": "teacher, cut",
    "random": "random weights",
    "untouched": "untouched",
    "self_supervised": "self-supervised",
    "student": "distilled",
}
"""Role -> head of its column; for a control its name."""
_CONTROLS: Final = {
    "self_supervised": (
        "the same net trained self-supervised on the same images, without the teacher and for the"
        " same epochs, which is not the same time (its step passes two views)",
        "the teacher adds to what the images alone teach by this method",
        "it is not shown that the teacher adds to what the images alone teach",
    ),
    "other_images": (
        "the same net whose teacher saw other images",
        "the loss teaches about images, not only how the teacher's embeddings are distributed",
        "it is not shown that the loss teaches about images, and not only how the teacher's"
        " embeddings are distributed",
    ),
}
"""For each control: its description, and the conclusions if the distilled student is
better and if that is not shown.
"""
_GAINS: Final = {"overlap": "teacher's neighbors", "purity": "purity"}
"""The metrics of which differences are shown."""
_ALWAYS: Final = ("teacher", "pca", "random", "untouched", "student")
"""The models of every run."""
_BOUNDED: Final = {
    "overlap": "teacher's neighbors",
    "knn_top1": "k-NN top-1",
    "purity": "purity",
    "probe_top1": "linear probe",
}
_PLAIN: Final = {
    "cka": "CKA with the teacher",
    "uniformity": "uniformity",
    "effective_rank": "effective rank",
}


_NOTABLE_CHANCE: Final = 0.05
"""Share of the neighbors that chance finds, above which it is named."""


class EmbeddingTable(NamedTuple):
    """heads: of the columns after the first · rows: name, and a cell a column."""

    heads: list[str]
    rows: list[tuple[str, list[str]]]


def build_embedding_table(results: Results) -> EmbeddingTable | None:
    """Return the table of all models on the reported split; None if nothing is
    measured.
    """
    last = results.embedding.last if results.embedding else None
    if last is None:
        return None
    split = last[1]
    roles = list(split.models)
    metrics = [split.models[role] for role in roles]
    rows = [("model", [_name_model(results, role) for role in roles])]
    rows.append(("width", [str(each.width) for each in metrics]))
    for name, title in _BOUNDED.items():
        cells = [_format_estimate(getattr(each, name)) for each in metrics]
        if any(cells):
            rows.append((_add_k(title, name, split), cells))
    rows += [
        (title, [_format_plain(each, name) for each in metrics]) for name, title in _PLAIN.items()
    ]
    for name, title in _GAINS.items():
        cells = [_format_gain(split.gains.get(role, {}).get(name)) for role in roles]
        if any(cells):
            rows.append((f"distilled minus this: {title}, points", cells))
    records = [results.models.get(role) for role in roles]
    rows += [
        ("parameters", [format_count(each.params) if each else "" for each in records]),
        ("multiply-adds", [format_count(each.macs) if each else "" for each in records]),
        ("size on disk", [_format_size(each) for each in records]),
        ("images per second", [_format_speed(results, role) for role in roles]),
    ]
    return EmbeddingTable([name_model(role) for role in roles], rows)


def name_model(role: str) -> str:
    """Return the title of a role; that of a control is its name with spaces."""
    return TITLES.get(role, role.replace("_", " "))


_STUDENTS: Final = ("untouched", "random")


def _name_model(results: Results, role: str) -> str:
    record = results.models.get(
        "student" if role in _STUDENTS else "teacher" if role == "pca" else role
    )
    return record.name if record else ""


def _add_k(title: str, name: str, split: EmbeddingSplit) -> str:
    return title if name == "probe_top1" else f"{title} (k={split.k})"


def _format_estimate(value: Estimate | None) -> str:
    if value is None or value.value is None:
        return ""
    text = format_percent(value.value)
    if value.low is None or value.high is None or value.low == value.high:
        return text
    return f"{text} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _format_gain(gain: Estimate | None) -> str:
    if gain is None or gain.value is None:
        return ""
    value, bounds = format_difference(gain.value, gain.low, gain.high)
    return f"{value} ({bounds})" if bounds else value


def _format_plain(metrics: EmbeddingMetrics, name: str) -> str:
    value = getattr(metrics, name)
    digits = 1 if name == "effective_rank" else 3
    return "" if value is None else f"{value:.{digits}f}"


def _format_size(record: ModelRecord | None) -> str:
    return f"{record.size_bytes / 1e6:,.2f} MB" if record else ""


def _format_speed(results: Results, role: str) -> str:
    speed = results.speed.student if role in (*_STUDENTS, "student") else None
    speed = results.speed.teacher if role == "teacher" else speed
    rate = speed.images_per_second if speed else None
    return f"{rate:,.0f}" if rate else ""


def write_embedding_verdict(results: Results) -> str:
    """Return the sentence that answers whether the teacher's neighbors were kept."""
    record = results.embedding
    verdict = record.verdict if record else None
    last = record.last if record else None
    if verdict is None or last is None:
        return ""
    split = last[1]
    share = (
        f"{format_percent(verdict.overlap)} ({100 * verdict.low:.1f} to {100 * verdict.high:.1f})"
    )
    limit = format_percent(1 - verdict.margin)
    outcome = {
        "kept": f"Kept: at least {limit} were asked for",
        "lost": f"Lost: at least {limit} were asked for",
        "not shown": f"Not shown: {limit} were asked for, and the interval holds that share",
    }[verdict.outcome]
    chance = split.k / max(split.num_gallery, 1)
    if verdict.outcome == "not shown" and chance >= 1 - verdict.margin:
        outcome = f"Not shown: {limit} were asked for, and chance finds as much; lower neighbors.k"
    by_chance = f" Chance finds {format_percent(chance)}." if chance >= _NOTABLE_CHANCE else ""
    held_out = "held-out images" if verdict.split in ("validation", "test") else "images"
    return (
        f"{outcome}. The student finds {share} of the teacher's {split.k} nearest images for"
        f" {verdict.num_images:,} {held_out} ({verdict.split}), among {split.num_gallery:,}"
        f" {'training' if split.gallery == 'train' else 'other'} images.{by_chance}"
        f" {_describe_quality(split)}"
    )


def _describe_quality(split: EmbeddingSplit) -> str:
    """How often a model's nearest images have the right class, by the labels."""
    if not split.num_labeled:
        return "This is agreement with the teacher, not quality: no label judged."
    shares = {
        role: format_percent(model.purity.value)
        for role, model in split.models.items()
        if model.purity is not None and model.purity.value is not None
    }
    if "student" not in shares:
        return "The labels judge quality; none was trained on."
    parts = [f"{shares['student']} of the student's nearest images have the right class"]
    parts += [
        f"of the {title} {shares[role]}"
        for role, title in (("teacher", "teacher's"), ("untouched", "untouched student's"))
        if role in shares
    ]
    return f"By the labels, none of which was trained on, {'; '.join(parts)}."


def list_embedding_sentences(results: Results) -> list[str]:
    """Return the verdict, and what each model beside the student shows."""
    record = results.embedding
    last = record.last if record else None
    if record is None or last is None:
        return []
    split = last[1]
    sentences = [write_embedding_verdict(results)]
    for name, title in _BOUNDED.items():
        gap = split.gap_closed.get(name)
        if gap is None:
            continue
        if gap.value is None or gap.low is None or gap.high is None:
            sentences.append(
                f"Gap closed in {title}: undefined, because teacher and untouched student do not"
                " differ for certain."
            )
            continue
        sentences.append(
            f"Gap closed in {title}: {format_percent(gap.value)} ({100 * gap.low:.1f} to"
            f" {100 * gap.high:.1f}) of the way from the untouched student to the teacher."
        )
    sentences += _describe_members(record)
    return sentences + _describe_others(split) + _describe_output(results)


def _describe_members(record: EmbeddingRecord) -> list[str]:
    shares = [
        f"{name} {format_percent(value)}"
        for name, value in record.members.items()
        if value is not None
    ]
    if not shares:
        return []
    return [
        f"Of the neighbors by all teachers together, each alone has: {', '.join(shares)}. Change"
        " teacher.members.<name>.weight if one of them should count more."
    ]


def _describe_others(split: EmbeddingSplit) -> list[str]:
    sentences, models = [], split.models
    pca, student = models.get("pca"), models["student"]
    if pca is not None:
        sentences.append(
            f"The width costs: the teacher's embedding, cut to the student's {pca.width} dimensions"
            f" by PCA, keeps {_format_estimate(pca.overlap)} of its neighbors."
        )
    random = models.get("random")
    if random is not None:
        sentences.append(
            f"The same net with random weights finds {_format_estimate(random.overlap)} of the"
            " teacher's neighbors, the untouched student"
            f" {_format_estimate(models['untouched'].overlap)},"
            f" the distilled one {_format_estimate(student.overlap)}."
        )
    return sentences + [_describe_control(split, role) for role in models if role not in _ALWAYS]


def _describe_control(split: EmbeddingSplit, role: str) -> str:
    """The difference between the distilled student and a control, and what it shows:
    by the labels where there are any, else by the teacher's neighbors.
    """
    gains = {name: gain for name, gain in split.gains.get(role, {}).items() if name in _GAINS}
    values = ", ".join(f"{_GAINS[name]} {_format_gain(gain)}" for name, gain in gains.items())
    what, better, not_shown = _CONTROLS.get(
        role, (role.replace("_", " "), "distillation is better", "no difference is shown")
    )
    judge = gains.get("purity") or gains.get("overlap") or Estimate(value=None)
    conclusion = not_shown
    if judge.low is not None and judge.low > 0:
        conclusion = better
    elif judge.high is not None and judge.high < 0:
        conclusion = "distillation did worse"
    by = "by the labels, " if "purity" in gains else "in agreement with the teacher, "
    return f"Distilled minus {what}, in points: {values}. So {by}{conclusion}."


def _describe_output(results: Results) -> list[str]:
    record = results.embedding
    if record is None:
        return []
    values: Sequence[str] = [
        f"{name} {format_percent(value)}"
        for name, value in record.candidates.items()
        if value is not None
    ]
    what = (
        "the projector's output (student/ holds the projector as timm's classifier)"
        if record.ships == "projector"
        else "the backbone's pooled output, without the projector"
    )
    return [f"The student ships {what}. Overlap on validation: {', '.join(values)}."]
