"""How much does each method add to a training step, compared with plain soft targets?
``python -m benchmarks.methods_cost``, part of ``make bench``

For every term of conf/loss, two students of one teacher take turns at single steps: one
on cross_entropy and soft_target, the other on cross_entropy and the term. The result is
the ratio of their times. A step includes the forward pass of teacher and student, the
backward pass and AdamW. Times are processor times of one thread, so that other work on
the machine hardly matters. Results go to docs/methods-cost.csv, the source of
docs/methods.md (``make methods``). ``--terms`` measures some terms and keeps the other
results.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import kd_app.models.small  # noqa: F401
from kd_app.config import InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.data.batch import Batch
from kd_app.deployment.hardware import read_cpu_name
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.specs.loss_choice import list_terms
from kd_app.training.job import Recipe

FILE = Path(__file__).parents[1] / "docs" / "methods-cost.csv"
SIDE, BATCH, CLASSES, IMAGES = 32, 64, 100, 50_000
_GRID = {"img_size": SIDE, "patch_size": 4}
_INPUT = InputSpec(3, SIDE, SIDE, (0.5,) * 3, (0.25,) * 3)
_LABELS, _BASELINE = "cross_entropy", "soft_target"


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, as name and arguments of `timm.create_model`, with a
    description.
    """

    name: str
    description: str
    teacher: tuple[str, Mapping[str, Any]]
    student: tuple[str, Mapping[str, Any]]


PAIRS = (
    Pair("CNN", "resnet56 to resnet20", ("resnet56", {}), ("resnet20", {})),
    Pair(
        "ViT",
        "vit_tiny with 6 blocks to deit_tiny_distilled with 4 blocks and 96 features, patches of 4"
        " pixels",
        ("vit_tiny_patch16_224", {**_GRID, "depth": 6}),
        ("deit_tiny_distilled_patch16_224", {**_GRID, "depth": 4, "embed_dim": 96, "num_heads": 3}),
    ),
)


@dataclass(frozen=True)
class Cost:
    """A row of the file: time of a step with the term relative to a step with
    soft_target (median and quartiles over `rounds`), and the number of parameters of
    the adapters; or `why` the term does not apply to the pair. Also the hardware and
    versions.
    """

    pair: str
    term: str
    ratio: float | None
    low: float | None
    high: float | None
    rounds: int | None
    adapters: int | None
    why: str
    device: str
    torch: str
    timm: str


class Training:
    """A student of a pair that trains on one batch of noise. Raises `RequestError` if a
    term can't apply to the pair.
    """

    def __init__(self, pair: Pair, names: Sequence[str]) -> None:
        torch.manual_seed(0)
        self.terms = Recipe(
            **{**_recipe(), "loss": {name: _recipe()["loss"][name] for name in names}}
        ).build_loss()
        image = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        self.batch = Batch(image, torch.arange(BATCH) % CLASSES, torch.arange(BATCH), progress=0.5)
        self.teacher = FrozenTeacher(
            _build_model(pair.teacher),
            reads=self.terms.teacher_reads,
            pixels=_INPUT,
            sees=_INPUT,
            attention_blocks=self.terms.attention_blocks,
        )
        student = _build_model(pair.student)
        if self.terms.needs_teacher:
            with torch.no_grad():
                images = image[:8]
                self.terms.build(
                    Taps(student.eval(), self.terms.reads)(images),
                    self.teacher(images),
                    torch.arange(IMAGES),
                )
        self.student = (
            self.terms.wrap_student(student).to(memory_format=torch.channels_last).train()
        )
        self.taps = Taps(self.student, self.terms.reads)
        trained = {
            id(p): p
            for part in (self.student, self.terms)
            for p in part.parameters()
            if p.requires_grad
        }
        self.optimizer = torch.optim.AdamW(trained.values(), lr=1e-4, fused=True)

    def step(self) -> float:
        """Run one step and return its processor time in seconds."""
        start = time.process_time()
        teacher = self.teacher(self.batch.image) if self.terms.needs_teacher else Outputs()
        loss, _ = self.terms(self.taps(self.batch.image), teacher, self.batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return time.process_time() - start


@cache
def _recipe() -> dict[str, Any]:
    """Return a recipe with every term at its default settings. The other parts are
    those of the default config and do not matter here.
    """
    config = compose_config("distill", [f"loss=[{','.join(list_terms())}]"])
    return {
        "max_epochs": 1,
        "seed": 0,
        **{key: config[key] for key in ("loss", "optimizer", "scheduler", "callbacks")},
    }


def _build_model(model: tuple[str, Mapping[str, Any]]) -> nn.Module:
    name, kwargs = model
    net: nn.Module = timm.create_model(name, num_classes=CLASSES, **kwargs)
    return net.to(memory_format=torch.channels_last)


def measure_cost(pair: Pair, term: str, *, rounds: int) -> Cost:
    """Measure a term on a pair. The first round is a warm-up."""
    environment = {"device": read_cpu_name(), "torch": version("torch"), "timm": version("timm")}
    try:
        own = Training(pair, [_LABELS] if term == _LABELS else [_LABELS, term])
    except RequestError as error:
        return Cost(pair.name, term, None, None, None, None, None, str(error), **environment)
    plain = _build_baseline(pair.name)
    ratios = []
    for number in range(rounds + 1):
        first, second = (plain, own) if number % 2 else (own, plain)
        seconds = {first: first.step(), second: second.step()}
        if number:
            ratios.append(seconds[own] / seconds[plain])
    low, median, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
    )
    adapters = sum(p.numel() for p in own.terms.parameters())
    return Cost(
        pair.name,
        term,
        round(median, 3),
        round(low, 3),
        round(high, 3),
        rounds,
        adapters,
        "",
        **environment,
    )


@cache
def _build_baseline(pair: str) -> Training:
    return Training(next(each for each in PAIRS if each.name == pair), [_LABELS, _BASELINE])


def read_costs() -> dict[tuple[str, str], Cost]:
    """Return the rows of the file, by pair and term."""
    if not FILE.is_file():
        return {}
    with FILE.open(encoding="utf-8", newline="") as file:
        costs = [_parse_cost(line) for line in csv.DictReader(file)]
    return {(each.pair, each.term): each for each in costs}


def _parse_cost(line: Mapping[str, str]) -> Cost:
    ratio, low, high = (float(line[key]) if line[key] else None for key in ("ratio", "low", "high"))
    rounds, adapters = (int(line[key]) if line[key] else None for key in ("rounds", "adapters"))
    return Cost(
        line["pair"],
        line["term"],
        ratio,
        low,
        high,
        rounds,
        adapters,
        line["why"],
        line["device"],
        line["torch"],
        line["timm"],
    )


def write_costs(costs: Mapping[tuple[str, str], Cost]) -> None:
    """Write the file in the order of pairs and terms, without terms that no longer
    exist.
    """
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            asdict(costs[pair.name, term])
            for pair in PAIRS
            for term in list_terms()
            if (pair.name, term) in costs
        )


def main() -> int:
    """Measure, print and write the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--terms",
        nargs="*",
        default=list_terms(),
        choices=list_terms(),
        metavar="TERM",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    costs = read_costs()
    print(
        f"Time of a step with each term relative to {_BASELINE}, {SIDE}x{SIDE}, batch {BATCH},"
        f" 1 thread, torch {torch.__version__}"
    )
    for pair in PAIRS:
        print(f"{pair.name}: {pair.description}")
        for term in args.terms:
            cost = costs[pair.name, term] = measure_cost(pair, term, rounds=args.rounds)
            result = (
                f"{cost.ratio:.2f} ({cost.low:.2f} to {cost.high:.2f})"
                if cost.ratio is not None
                else f"does not apply: {cost.why}"
            )
            print(f"  {term}: {result}", flush=True)
            write_costs(costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
