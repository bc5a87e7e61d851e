"""The trials of the search for default recipes, and which candidates are confirmed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Final, NamedTuple

from benchmarks.recipe_trials import (
    BY_HAND,
    CIFAR,
    DIGITS,
    DISTILLED,
    FASHION,
    FLOWERS,
    IMBALANCED,
    LABEL_FRACTION,
    LABELS,
    TAUGHT,
    TEACHER_LABELS,
    Measured,
    Trial,
)
from kd_app.config.compose import compose_config
from kd_app.specs.loss_choice import RULE
from kd_app.specs.loss_choice import read_defaults as read_term

SCRATCH_PAIR: Final = "wrn_16_2 -> resnet8"
OTHER_PAIR: Final = "resnet20 -> wrn_16_1"
TUNED_PAIR: Final = "lite1 -> lite0"
SEARCH, TUNING, BAR, IMBALANCE, AVERAGE = "search", "tuning", "bar", "imbalance", "average"
LONGER, VIT, FEW = "longer", "transformer", "few"


class Regime(NamedTuple):
    """Trainings that share their defaults: from random weights or from pretrained ones.

    pairs: by set, the pairs of models. center: the settings that the candidates of a
    search differ from, by a short name. labels, distilled: the other candidates. rate:
    the setting of the optimizer that holds the default learning rate. rates_by_hand:
    those that the loop by hand is tuned with. tuned: the regime and the scale whose
    tuning the loop by hand takes over, where it is not tuned anew.
    """

    name: str
    pairs: Mapping[str, Sequence[str]]
    labels: Mapping[str, Mapping[str, str]]
    distilled: Mapping[str, Mapping[str, str]]
    center: Mapping[str, str]
    rate: str
    rates_by_hand: Sequence[float] = ()
    tuned: "tuple[Regime, str] | None" = None


def _vary(*changes: str) -> dict[str, dict[str, str]]:
    """Candidates by name: 'lr=0.01 T=2' sets two settings."""
    return {change: dict(part.split("=", 1) for part in change.split()) for change in changes}


_SCRATCH: Final = _vary(
    "scheduler=one_cycle lr=0.01",
    "scheduler=one_cycle",
    "lr=0.01",
    "wd=0.005",
    "lr=0.001",
    "wd=0.2",
    "scheduler=linear",
)
_TUNED: Final = _vary(
    "lr=0.001",
    "batch=16",
    "head=timm",
    "scheduler=one_cycle lr=0.001",
    "batch=16 lr=0.001",
    "layer_decay=0.75 lr=0.001",
    "lr=0.0006",
    "lr=0.0001",
)
_TERMS: Final = _vary("weights=0.1/0.9", "T=2", "weights=0.1/0.9 T=2", "weights=0.5/0.5")
_JOINT: Final = _vary(
    "lr=0.01 T=2",
    "lr=0.01",
    "scheduler=one_cycle lr=0.01 weights=0.1/0.9",
    "scheduler=one_cycle lr=0.01 weights=0.1/0.9 T=2",
)
REGIMES: Final = (
    Regime(
        "from random weights",
        {
            DIGITS: (SCRATCH_PAIR, OTHER_PAIR),
            FASHION: (SCRATCH_PAIR, OTHER_PAIR),
            CIFAR: (SCRATCH_PAIR, OTHER_PAIR),
        },
        _SCRATCH,
        _TERMS | _JOINT,
        {"scheduler": "cosine", "lr": "0.003", "wd": "0.05", "weights": "1/1", "T": "4"},
        "scratch_lr",
        rates_by_hand=(0.005, 0.01, 0.02),
    ),
    Regime(
        "from pretrained weights",
        {FLOWERS: (TUNED_PAIR,)},
        _TUNED,
        _TERMS,
        {"scheduler": "cosine", "lr": "0.0003", "wd": "0.05", "weights": "1/1", "T": "4"},
        "finetune_lr",
        rates_by_hand=(1e-3, 3e-3),
    ),
)
TAUGHT_REGIME: Final = Regime(
    "from random weights, with a pretrained teacher",
    {CIFAR: ("lite0 -> resnet10t",), FLOWERS: ("lite0 -> resnet10t",)},
    {},
    {},
    REGIMES[0].center,
    "scratch_lr",
    tuned=(REGIMES[0], "small"),
)
"""A teacher that is better than its student ever gets alone."""


def list_compared(scale: str) -> Sequence[Regime]:
    """The regimes whose defaults are compared with a loop by hand at this scale."""
    return (TAUGHT_REGIME,) if scale == TAUGHT else REGIMES


CENTER: Final = "center"
_KEYS: Final = {
    "scheduler": "scheduler",
    "lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "layer_decay": "optimizer.layer_decay",
    "batch": "data.batch_size",
    "head": "head",
}
"""Settings of both arms by the keys of a candidate."""


def spell(settings: Mapping[str, str], arm: str) -> str:
    """The overrides of a candidate, separated by spaces."""
    words = []
    for key, value in settings.items():
        if key == "weights" and arm == DISTILLED:
            labels, soft = value.split("/")
            words += [f"loss.cross_entropy.weight={labels}", f"loss.soft_target.weight={soft}"]
        elif key == "T" and arm == DISTILLED:
            words.append(f"loss.soft_target.temperature={value}")
        elif key in _KEYS:
            words.append(f"{_KEYS[key]}={value}")
    return " ".join(words)


def list_candidates(regime: Regime, arm: str) -> dict[str, str]:
    """The overrides of all candidates of a regime by their short names."""
    changes = regime.labels if arm == LABELS else regime.distilled
    named = {CENTER: {}, **changes}
    return {name: spell({**regime.center, **change}, arm) for name, change in named.items()}


def list_screen(scale: str, *, pairs: int) -> Iterator[Trial]:
    """All candidates with one seed, on the first `pairs` pairs of each set. Candidates
    come one after the other, so that those which were tried are tried on all sets.
    """
    rows = [
        [
            Trial(SEARCH, data, scale, pair, arm, candidate, 0)
            for candidate in list_candidates(regime, arm).values()
        ]
        for regime in REGIMES
        for data, known in regime.pairs.items()
        for pair in known[:pairs]
        for arm in (LABELS, DISTILLED)
    ]
    for column in zip_longest(*rows):
        yield from (trial for trial in column if trial is not None)


def compare_candidates(
    known: Mapping[Trial, Measured], regime: Regime, arm: str, scale: str, seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """By candidate and by set with its pair: accuracy on validation minus that of the
    center, the mean over the `seeds`; only what was measured for all of them.
    """
    differences: dict[str, dict[str, float]] = {}
    candidates = list_candidates(regime, arm)
    for name, candidate in candidates.items():
        for data, pairs in regime.pairs.items():
            for pair in pairs:
                trials = [
                    [known.get(Trial(SEARCH, data, scale, pair, arm, each, seed)) for seed in seeds]
                    for each in (candidate, candidates[CENTER])
                ]
                own, center = ([each.top1 for each in row if each] for row in trials)
                if len(own) == len(center) == len(seeds):
                    where = f"{data}, {pair}"
                    differences.setdefault(name, {})[where] = fmean(own) - fmean(center)
    return differences


def rank_candidates(differences: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The candidates that were measured wherever the center was, the best first."""
    places = differences.get(CENTER, {}).keys()
    whole = {name: row for name, row in differences.items() if row.keys() == places}
    return sorted(whole, key=lambda name: -fmean(whole[name].values()))


def list_survivors(
    scale: str, pairs: int, known: Mapping[Trial, Measured], *, best: int = 1
) -> Iterator[Trial]:
    """The center and the `best` candidates of the screening with two more seeds."""
    for regime in REGIMES:
        for arm in (LABELS, DISTILLED):
            names = rank_candidates(compare_candidates(known, regime, arm, scale, (0,)))
            others = [name for name in names if name != CENTER][:best]
            for seed in (1, 2):
                for name in (CENTER, *others):
                    candidate = list_candidates(regime, arm)[name]
                    for data, models in regime.pairs.items():
                        for pair in models[:pairs]:
                            yield Trial(SEARCH, data, scale, pair, arm, candidate, seed)


_TEMPERATURES: Final = (2.0, 4.0)


def list_tuning(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """The loop by hand: rates on labels, then temperatures at the best rate."""
    for regime in REGIMES:
        for rate in regime.rates_by_hand:
            for data, models in regime.pairs.items():
                candidate = f"careful.lr={rate:g}"
                yield Trial(TUNING, data, scale, models[0], BY_HAND[LABELS], candidate, 0)
        for temperature in _TEMPERATURES:
            lr = choose_by_hand(known, regime, LABELS, scale)
            candidate = f"{lr} careful.temperature={temperature:g}"
            for data, models in regime.pairs.items():
                yield Trial(TUNING, data, scale, models[0], BY_HAND[DISTILLED], candidate, 0)


def choose_by_hand(known: Mapping[Trial, Measured], regime: Regime, arm: str, scale: str) -> str:
    """The settings of the loop by hand with the best mean on validation over the sets;
    those that were listed first if nothing is measured.
    """
    if regime.tuned is not None:
        regime, scale = regime.tuned
    sums: dict[str, list[float]] = {}
    for trial, measured in known.items():
        is_same = (trial.study, trial.arm, trial.scale) == (TUNING, BY_HAND[arm], scale)
        if is_same and trial.data in regime.pairs:
            sums.setdefault(trial.candidate, []).append(measured.top1)
    most = max((len(values) for values in sums.values()), default=0)
    whole = {name: fmean(values) for name, values in sums.items() if len(values) == most}
    rate = f"careful.lr={regime.rates_by_hand[0]:g}"
    default = rate if arm == LABELS else f"{rate} careful.temperature={_TEMPERATURES[0]:g}"
    return max(whole, key=lambda name: whole[name], default=default)


def read_defaults(regime: Regime) -> dict[str, str]:
    """The defaults in conf/ by the keys of a candidate."""
    config = compose_config("distill", [])
    terms = {name: {**read_term(name), **settings} for name, settings in RULE[-1].terms.items()}
    optimizer = config["optimizer"]
    name = str(config["scheduler"]["_target_"]).rsplit(".", 1)[-1]
    weights = (terms[each]["weight"] for each in ("cross_entropy", "soft_target"))
    return {
        "scheduler": {"Cosine": "cosine", "OneCycle": "one_cycle"}[name],
        "lr": f"{optimizer[regime.rate]:g}",
        "wd": f"{optimizer['weight_decay']:g}",
        "weights": "/".join(f"{weight:g}" for weight in weights),
        "T": f"{terms['soft_target']['temperature']:g}",
    }


_SEEDS: Final = 5
_MORE_SEEDS: Final = {(TAUGHT, CIFAR): 10}
"""By scale and set: the seeds of the defaults where five differ too much to tell what a
teacher is worth.
"""


def list_bar(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """The defaults and the loop by hand on test images, with the same teachers. The
    loop has one setting for all sets that are trained from random weights.
    """
    for seed in range(max(_SEEDS, *_MORE_SEEDS.values())):
        for regime in list_compared(scale):
            for arm in (LABELS, DISTILLED):
                defaults = spell(read_defaults(regime), arm)
                for data, models in regime.pairs.items():
                    if seed < _MORE_SEEDS.get((scale, data), _SEEDS):
                        yield Trial(BAR, data, scale, models[0], arm, defaults, seed)
                    if seed < _SEEDS:
                        by_hand = choose_by_hand(known, regime, arm, scale)
                        yield Trial(BAR, data, scale, models[0], BY_HAND[arm], by_hand, seed)


_LONG_EPOCHS: Final = {FASHION: 24, CIFAR: 30, FLOWERS: 12}
"""Three times the epochs of the scale `quick`."""
_LONGER: Final = {
    REGIMES[0].name: (CENTER, "lr=0.01", "scheduler=one_cycle lr=0.01"),
    REGIMES[1].name: (CENTER, "lr=0.001"),
}


def list_longer(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """Whether a high rate is as good when the training is longer."""
    for regime in REGIMES:
        candidates = list_candidates(regime, LABELS)
        for data, models in regime.pairs.items():
            for name in _LONGER[regime.name] if data in _LONG_EPOCHS else ():
                candidate = f"{candidates[name]} trainer.max_epochs={_LONG_EPOCHS[data]}"
                yield Trial(LONGER, data, scale, models[0], LABELS, candidate, 0)


_VIT_PAIR: Final = "wrn_16_2 -> small_vit"


def list_vit(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """Whether a rate that suits small CNNs suits a small vision transformer."""
    candidates = list_candidates(REGIMES[0], LABELS)
    for data in (DIGITS, CIFAR):
        for name in (CENTER, "lr=0.01"):
            yield Trial(VIT, data, scale, _VIT_PAIR, LABELS, candidates[name], 0)


def list_imbalance(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """Classes of unequal size: balanced by weights of the loss, and in the loop by hand
    by a sampler, too.
    """
    lr = choose_by_hand(known, REGIMES[0], LABELS, scale)
    for seed in range(3):
        for choice in ("null", "balanced"):
            options = f"loss.cross_entropy.class_weights={choice}"
            yield Trial(IMBALANCE, IMBALANCED, scale, SCRATCH_PAIR, LABELS, options, seed)
        for balance in ("none", "weights", "sampler"):
            candidate = f"{lr} careful.balance={balance}"
            yield Trial(
                IMBALANCE, IMBALANCED, scale, SCRATCH_PAIR, BY_HAND[LABELS], candidate, seed
            )


def list_average(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """Raw weights and the better ones of raw and averaged weights on validation."""
    for seed in range(3):
        for data in REGIMES[0].pairs:
            for options in ("", "callbacks=[ema]"):
                yield Trial(AVERAGE, data, scale, SCRATCH_PAIR, LABELS, options, seed)


FEW_LABELS: Final = f"{LABEL_FRACTION}=0.1"
TAUGHT_ALL: Final = f"{FEW_LABELS} {TEACHER_LABELS}=all"


def list_few(scale: str, pairs: int, known: Mapping[Trial, Measured]) -> Iterator[Trial]:
    """A tenth of the labels, with a teacher that knows all of them, and with one that
    knows the same.
    """
    rows = ((LABELS, FEW_LABELS), (DISTILLED, TAUGHT_ALL), (DISTILLED, FEW_LABELS))
    for arm, candidate in rows:
        for seed in range(5):
            for data, models in REGIMES[1].pairs.items():
                yield Trial(FEW, data, scale, models[0], arm, candidate, seed)


Study = Callable[[str, int, Mapping[Trial, Measured]], Iterator[Trial]]
STUDIES: Final[Mapping[str, Study]] = {
    "screen": lambda scale, pairs, _: list_screen(scale, pairs=pairs),
    "confirm": list_survivors,
    LONGER: list_longer,
    VIT: list_vit,
    TUNING: list_tuning,
    BAR: list_bar,
    FEW: list_few,
    IMBALANCE: list_imbalance,
    AVERAGE: list_average,
}
