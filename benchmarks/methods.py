"""The page of all methods in conf/loss: what each reads, costs and needs. ``python -m
benchmarks.methods > docs/methods.md``, or ``make methods``

Nothing is trained. Facts that the code knows come from the terms; facts that the code
can't know (paper, published settings, when the term hurts) come from the head of each
YAML file; the cost of a step was measured by `benchmarks.methods_cost`.
"""

import inspect
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from benchmarks.methods_cost import BATCH, FILE, PAIRS, SIDE, Cost, read_costs
from kd_app.config.paths import CONF
from kd_app.losses.base import Level, LossTerm
from tests.losses.samples import TERMS, build_term, class_of, labels, make, pair, settings_of

TABLE = Path(__file__).parents[1] / "docs" / "methods.md"
KEYS = ("Paper", "Published", "Hurts")
_HEAD = (
    "term",
    "level",
    "reads of the student",
    "reads of the teacher",
    "labels",
    "compares images",
    *(f"step, {each.name}" for each in PAIRS),
)
_LINE = re.compile(rf"({'|'.join(KEYS)}): (.*)")


@dataclass(frozen=True)
class TermHead:
    """The head of a YAML file: a summary of the term, and a note for each of `KEYS`."""

    summary: str
    notes: dict[str, str]


def parse_head(path: Path) -> TermHead:
    """Parse the head of ``conf/loss/<term>.yaml``: comments with a summary, followed by
    one comment that starts with each of `KEYS`.

    Raises ValueError if one is missing.
    """
    parts = [["", ""]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if match := _LINE.fullmatch(text):
            parts.append([match[1], match[2]])
        else:
            parts[-1][1] = f"{parts[-1][1]} {text}".strip()
    notes = {part[0]: part[1] for part in parts}
    missing = [key for key in KEYS if not notes.get(key)]
    if missing or not notes[""]:
        raise ValueError(
            f"The head of {path.name} lacks {', '.join(missing) or 'a summary'}. Expected comments"
            " before the first key: a summary of the term, then '# Paper: ...', '# Published:"
            " ...' (settings, or none) and '# Hurts: ...' (or that nothing is known)."
        )
    return TermHead(notes.pop(""), notes)


def reads_labels(name: str) -> bool:
    """Whether other labels change the value of a term, on random outputs."""
    student, teacher = pair(term=name)
    term = build_term(name, student, teacher)
    values: list[float] = [
        deepcopy(term)(student, teacher, labels(5, seed=seed)).item() for seed in (0, 1)
    ]
    return values[0] != values[1]


def render_row(name: str, costs: Sequence[Cost]) -> str:
    """Return the term's row of the table."""
    term: LossTerm = make(name)
    theirs = _format_fields(term.teacher_reads) if term.needs_teacher else "nothing"
    flags = (reads_labels(name), term.needs_global_batch)
    marks = ["yes" if flag else "no" for flag in flags]
    times = [f"{cost.ratio:.2f}" if cost.ratio is not None else "no" for cost in costs]
    cells = [f"[`{name}`](#{name})", term.level, _format_fields(term.reads), theirs]
    return f"| {' | '.join([*cells, *marks, *times])} |"


def render_section(name: str, costs: Sequence[Cost]) -> str:
    """Return the section about a term."""
    head, cls = parse_head(CONF / "loss" / f"{name}.yaml"), class_of(name)
    settings = {key: value for key, value in settings_of(name).items() if key != "_target_"}
    description = inspect.cleandoc(cls.__doc__ or "").replace("``", "`")
    lines = [f"### {name}", "", head.summary, "", description, ""]
    lines += [
        f"- Paper: {_link_papers(head.notes['Paper'])}",
        f"- Default settings ([explained](../conf/loss/{name}.yaml)): {_format_settings(settings)}",
    ]
    lines += [
        f"- Published settings (not run here): {_link_papers(head.notes['Published'])}",
        f"- Hurts: {head.notes['Hurts']}",
        f"- Needs: {describe_scope(name)}",
    ]
    lines += [f"- {_describe_cost(cost)}" for cost in costs]
    return "\n".join([*lines, ""])


def describe_scope(name: str) -> str:
    """Return the numbers of classes and of images in a batch that a term needs."""
    settings = settings_of(name)
    variants = {"": make(name)}
    if "standardize" in settings:
        other = not settings["standardize"]
        variants[f" with `standardize={str(other).lower()}`"] = make(name, standardize=other)
    phrases: list[str] = []
    for suffix, term in variants.items():
        for part in term.list_parts():
            counts = {"classes": (part.min_classes, 2), "images in a batch": (part.min_images, 1)}
            needs = [f"{count} {unit}" for unit, (count, least) in counts.items() if count > least]
            subject = f"`{part.name}`" if part.name in settings else part.name
            phrase = f"{subject} {' and '.join(needs)}".strip()
            if needs and phrase not in phrases:
                phrases.append(phrase + suffix)
    return "; ".join(phrases) or "2 classes"


def _describe_cost(cost: Cost) -> str:
    if cost.ratio is None:
        return f"{cost.pair}: does not apply. {cost.why}"
    adapters = f"; adapters with {cost.adapters:,} parameters" if cost.adapters else ""
    spread = f"{cost.low:.2f} to {cost.high:.2f} in {cost.rounds} rounds"
    return (
        f"{cost.pair}: a step takes {cost.ratio:.2f} times a step with soft targets"
        f" ({spread}){adapters}"
    )


def _format_fields(fields: frozenset[str]) -> str:
    return ", ".join(sorted(fields))


def _format_settings(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"`{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"
        for key, value in settings.items()
    )


def _link_papers(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def render_page() -> str:
    """Return the page. Raises ValueError for an incomplete YAML head, and for a term
    without measured cost.
    """
    measured = read_costs()
    if missing := [
        name for name in TERMS if any((each.name, name) not in measured for each in PAIRS)
    ]:
        raise ValueError(
            f"{FILE.name} has no cost of {', '.join(missing)}. Measure it with python -m"
            f" benchmarks.methods_cost --terms {' '.join(missing)}."
        )
    costs = {name: [measured[each.name, name] for each in PAIRS] for name in TERMS}
    names = {
        level: [name for name in TERMS if class_of(name).level == level]
        for level in get_args(Level)
    }
    ordered = [name for level in names for name in names[level]]
    table = [
        f"| {' | '.join(_HEAD)} |",
        "|" + "---|" * len(_HEAD),
        *(render_row(name, costs[name]) for name in ordered),
    ]
    parts = [
        f"## Level {level}\n\n"
        + "\n".join(render_section(name, costs[name]) for name in names[level])
        for level in names
    ]
    return "\n".join(
        [_render_title([cost for each in costs.values() for cost in each]), *table, "", *parts]
    )


def _render_title(costs: Sequence[Cost]) -> str:
    pairs = "\n".join(f"- {each.name}: {each.description}" for each in PAIRS)
    where = "; ".join(
        sorted({f"{cost.device}, torch {cost.torch}, timm {cost.timm}" for cost in costs})
    )
    return f"""# Methods

Every term of `loss=[...]`, written by `make methods`. The fields that a term reads are those
of `kd_app/models/outputs.py`. 'labels': whether other labels change the value. 'compares
images': whether the term gets the images of all ranks at once. Terms that read no labels also
learn from unlabeled images.

'step': processor time of one step with `cross_entropy` and the term, relative to one with
`cross_entropy` and `soft_target`. So 1.00 is the cost of plain distillation, and the row
`cross_entropy` is training without a teacher. 'no': the term does not apply to the pair; the
reason is below. A step includes the forward pass of teacher and student, the backward pass
and AdamW: {SIDE}x{SIDE} pixels, batch {BATCH}, one thread, median and quartiles over rounds
with alternating order. The row of `soft_target` itself shows the measurement noise. `make
bench` measures again into [methods-cost.csv](methods-cost.csv).

{pairs}
- Measured on {where}

'Hurts' and 'Published settings' report results from elsewhere, which were not run here.
"""


def main() -> None:
    """Print the page."""
    print(render_page(), end="")


if __name__ == "__main__":
    main()
