"""Each method of conf/loss, what it reads, costs and needs. ``python -m
benchmarks.methods > docs/methods.md``, or ``make methods``

Nothing is trained for it. What the code knows is asked of the terms; what it can't know
(paper, published settings, when it hurts) stands in the head of each YAML; what a step
costs was measured by `benchmarks.methods_cost`.
"""

import inspect
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from benchmarks.methods_cost import BATCH, FILE, PAIRS, SIDE, Cost, read
from kd_app.config.paths import CONF
from kd_app.losses.base import Level, LossTerm
from tests.losses.samples import TERMS, built, class_of, labels, make, pair, settings_of

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
class Facts:
    """What the head of a YAML says: what the student is asked for, and for each of
    `KEYS` what there is to say.
    """

    asked: str
    said: dict[str, str]


def facts(path: Path) -> Facts:
    """The head of ``conf/loss/<term>.yaml``: comments, of which one begins with each of
    `KEYS`; what stands before them says what the term asks for.

    Raises ValueError when one lacks.
    """
    parts = [["", ""]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if found := _LINE.fullmatch(text):
            parts.append([found[1], found[2]])
        else:
            parts[-1][1] = f"{parts[-1][1]} {text}".strip()
    said = {part[0]: part[1] for part in parts}
    lacking = [key for key in KEYS if not said.get(key)]
    if lacking or not said[""]:
        raise ValueError(
            f"The head of {path.name} does not say"
            f" {', '.join(lacking) or 'what the term asks for'}. Expected comments before the first"
            " key: what the student is asked for, then '# Paper: ...', '# Published: ...'"
            " (settings, or none) and '# Hurts: ...' (or that nothing is known)."
        )
    return Facts(said.pop(""), said)


def reads_labels(name: str) -> bool:
    """Whether other labels give another value, for made-up outputs."""
    student, teacher = pair(term=name)
    term = built(name, student, teacher)
    values: list[float] = [
        deepcopy(term)(student, teacher, labels(5, seed=seed)).item() for seed in (0, 1)
    ]
    return values[0] != values[1]


def line(name: str, costs: Sequence[Cost]) -> str:
    """The term's line of the table."""
    term: LossTerm = make(name)
    theirs = _listed(term.teacher_reads) if term.needs_teacher else "nothing"
    marks = ["yes" if known else "no" for known in (reads_labels(name), term.needs_global_batch)]
    times = [f"{cost.ratio:.2f}" if cost.ratio is not None else "no" for cost in costs]
    return f"| {' | '.join([f'[`{name}`](#{name})', term.level, _listed(term.reads), theirs, *marks, *times])} |"


def section(name: str, costs: Sequence[Cost]) -> str:
    """All that there is to say of a term."""
    known, cls = facts(CONF / "loss" / f"{name}.yaml"), class_of(name)
    settings = {key: value for key, value in settings_of(name).items() if key != "_target_"}
    told = inspect.cleandoc(cls.__doc__ or "").replace("``", "`")
    lines = [f"### {name}", "", known.asked, "", told, ""]
    lines += [
        f"- Paper: {_linked(known.said['Paper'])}",
        f"- Settings here ([what they are](../conf/loss/{name}.yaml)): {_settings(settings)}",
    ]
    lines += [
        f"- As published, not run here: {_linked(known.said['Published'])}",
        f"- Hurts: {known.said['Hurts']}",
    ]
    lines += [f"- {_cost(cost)}" for cost in costs]
    return "\n".join([*lines, ""])


def _cost(cost: Cost) -> str:
    if cost.ratio is None:
        return f"{cost.pair}: does not apply. {cost.why}"
    adapters = f"; adapters of {cost.adapters:,} parameters" if cost.adapters else ""
    spread = f"{cost.low:.2f} to {cost.high:.2f} in {cost.rounds} rounds"
    return (
        f"{cost.pair}: a step takes {cost.ratio:.2f} of one with soft targets ({spread}){adapters}"
    )


def _listed(fields: frozenset[str]) -> str:
    return ", ".join(sorted(fields))


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"`{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"
        for key, value in settings.items()
    )


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def written() -> str:
    """The page. Raises ValueError for a term whose YAML lacks something, or whose cost
    is not measured.
    """
    measured = read()
    if lacking := [
        name for name in TERMS if any((each.name, name) not in measured for each in PAIRS)
    ]:
        raise ValueError(
            f"{FILE.name} has no cost of {', '.join(lacking)}: python -m benchmarks.methods_cost"
            f" --terms {' '.join(lacking)}"
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
        *(line(name, costs[name]) for name in ordered),
    ]
    parts = [
        f"## Level {level}\n\n" + "\n".join(section(name, costs[name]) for name in names[level])
        for level in names
    ]
    return "\n".join(
        [_title([cost for each in costs.values() for cost in each]), *table, "", *parts]
    )


def _title(costs: Sequence[Cost]) -> str:
    pairs = "\n".join(f"- {each.name}: {each.told}" for each in PAIRS)
    where = "; ".join(
        sorted({f"{cost.device}, torch {cost.torch}, timm {cost.timm}" for cost in costs})
    )
    return f"""# Methods

Every term of `loss=[...]`, written by `make methods`. What a term reads and how it compares is asked of the term itself: `logits`, `embedding` and
so on are the fields of `kd_app/models/outputs.py`; 'labels' says whether other labels give another value, 'compares images' whether it is given those
of all ranks at once. Terms that read no labels learn from unlabeled images, too.

'step' is the processor time of one step with the term beside `cross_entropy` over that of one with `soft_target` in its place, so 1.00 is the price
of plain distillation and `cross_entropy` is training without a teacher; 'no' does not apply to the pair, and its reason stands below. It holds the
passes of teacher and student, the way back and AdamW; {SIDE}x{SIDE} pixels, batch {BATCH}, one thread, median and quartiles of rounds that take
turns; the line of `soft_target` itself says how far chance goes. `make bench` measures it again into [methods-cost.csv](methods-cost.csv).

{pairs}
- Measured on {where}

'Hurts' says what is known from elsewhere, 'as published' are settings of papers and their code that nobody ran here.
"""


def main() -> None:
    """Print the page."""
    print(written(), end="")


if __name__ == "__main__":
    main()
