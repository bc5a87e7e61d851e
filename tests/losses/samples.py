"""Samples for the tests of all terms: YAML files, terms, and outputs of two different
models.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import LossTerm
from kd_app.models.heads import Head
from kd_app.models.outputs import Attention, Outputs, Tokens
from kd_app.specs.loss_choice import list_terms

CONF = Path(__file__).parents[2] / "conf" / "loss"
TERMS = list_terms()
CLASSES = 6
TOKENS = {"hard_token", "soft_token"}


def settings_of(name: str) -> dict[str, Any]:
    """Return the content of ``conf/loss/<name>.yaml`` below the term's name."""
    content = deepcopy(_read_yaml(name))
    assert list(content) == [name]
    settings: dict[str, Any] = content[name]
    return settings


@cache
def _read_yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def class_of(name: str) -> type[LossTerm]:
    module, _, symbol = settings_of(name)["_target_"].rpartition(".")
    cls: type[LossTerm] = getattr(import_module(module), symbol)
    return cls


def make(name: str, **changed: Any) -> Any:
    """Build the term with the settings of its YAML file, overridden by `changed`."""
    settings = {
        key: value for key, value in settings_of(name).items() if key not in ("_target_", "weight")
    }
    return class_of(name)(**{**settings, **changed})


def normal(
    *shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    return scale * _draw(shape, seed, dtype)


@lru_cache(2048)
def _draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(z: Tensor) -> Outputs:
    return Outputs(logits=z)


def maps(*features: Tensor) -> Outputs:
    return Outputs(features=list(features))


def batch(target: Tensor, labeled: Tensor | None = None) -> Batch:
    return Batch(
        torch.zeros(len(target), 1, 1, 1), target, torch.arange(len(target)), labeled=labeled
    )


def labels(images: int, classes: int = CLASSES, seed: int = 0) -> Batch:
    return batch(torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed)))


def model_outputs(
    *,
    seed: int,
    width: int,
    images: int = 5,
    scale: float = 1.0,
    sizes: tuple[int, ...] = (8, 4, 2),
    classes: int = CLASSES,
) -> Outputs:
    """Return random outputs of a model with all fields, in float64; `width` is a
    multiple of 16.
    """

    def draw(*shape: int) -> Tensor:
        nonlocal seed
        seed += 1
        return normal(*shape, seed=seed, scale=scale)

    def block() -> Attention:
        query, key, value = (draw(images, 4, 17, width // 4) for _ in range(3))
        return Attention(query, key, value, num_prefix=1)

    features = [
        draw(images, width // 2 ** (len(sizes) - 1 - i), size, size) for i, size in enumerate(sizes)
    ]
    classifier = nn.Linear(width, classes, dtype=torch.float64).requires_grad_(False)
    return Outputs(
        logits=draw(images, classes),
        embedding=draw(images, width),
        features=features,
        pre_activation=[draw(*x.shape) for x in features],
        tokens=[Tokens(draw(images, 16, width), draw(images, 1, width)) for _ in range(3)],
        attention=[block() for _ in range(3)],
        classifier=classifier,
    )


def pair(
    images: int = 5, scale: float = 1.0, *, term: str = "", classes: int = CLASSES
) -> tuple[Outputs, Outputs]:
    """Return outputs of a student and of a wider teacher with maps of other sizes,
    suitable for `term`.
    """
    student, teacher = (
        model_outputs(
            seed=seed, width=width, images=images, scale=scale, sizes=sizes, classes=classes
        )
        for seed, width, sizes in ((100, 32, (8, 4, 2)), (200, 48, (9, 4, 3)))
    )
    return adapt_outputs(term, student), adapt_outputs(term, teacher)


def adapt_outputs(term: str, outputs: Outputs) -> Outputs:
    """Adapt the outputs to the requirements of `term`: two heads, or a classifier on
    the averaged map.
    """
    assert outputs.embedding is not None
    assert outputs.logits is not None
    width = outputs.embedding.shape[1]
    if term in TOKENS:
        heads = [
            nn.Linear(width // 2, outputs.logits.shape[1], dtype=torch.float64).requires_grad_(
                False
            )
            for _ in range(2)
        ]
        head = Head(tuple(heads), (width // 2, width // 2), convolutional=False)
        return replace(outputs, classifier=head, logits=head(outputs.embedding))
    return (
        replace(outputs, embedding=outputs.features[-1].mean((2, 3)))
        if term == "simkd"
        else outputs
    )


def build_term(name: str, student: Outputs, teacher: Outputs, **changed: Any) -> Any:
    """Return the term with adapters, which are the same for every call and have the
    precision of the outputs.
    """
    term = make(name, **changed)
    assert student.logits is not None
    term.images = torch.arange(len(student.logits))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        term.build(student, teacher)
    return term.to(student.logits.dtype)


def tensors(outputs: Outputs, reads: frozenset[str]) -> list[Tensor]:
    """Return the tensors of these fields, flat."""
    return [leaf for name in sorted(reads) for leaf in _leaves(getattr(outputs, name))]


def _leaves(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return (
        [leaf for part in value for leaf in _leaves(part)]
        if isinstance(value, (list, tuple))
        else []
    )


def map_tensors(outputs: Outputs, function: Any) -> Outputs:
    """Return the outputs with `function` applied to every tensor."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, tuple):
            return type(value)(*map(apply, value))
        return [apply(part) for part in value] if isinstance(value, list) else value

    fields: Mapping[str, Any] = vars(outputs)
    return Outputs(**{name: apply(value) for name, value in fields.items()})


def split_axis(x: Tensor, dim: int, parts: int) -> Tensor:
    """Reshape ``[..., n, ...]`` to ``[..., parts, n / parts, ...]``."""
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    return x.reshape(*before, parts, -1, *after)


def descend(
    value: Callable[[], Tensor], x: Iterable[Tensor], *, steps: int, lr: float
) -> tuple[float, float]:
    """Return the value before and after some steps of Adam on `x`."""
    start, optimizer = value().item(), torch.optim.Adam(x, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(value())
        optimizer.step()
    return start, value().item()


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return d value / d x; the graph is kept."""
    (result,) = torch.autograd.grad(value, x, retain_graph=True)
    return result
