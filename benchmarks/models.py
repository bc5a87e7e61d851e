"""What can be read of one small variant of each of timm's model modules. ``python -m
benchmarks.models > docs/models.md``, or ``make models``
"""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.variants import SIDES, Variant, images, modules, smallest
from kd_app.models.hooks import freeze_state
from kd_app.models.outputs import Outputs
from kd_app.models.tap_plan import plan_taps
from kd_app.models.taps import Taps

FIELDS = ("logits", "embedding", "classifier", "features", "pre_activation", "tokens", "attention")
TABLE = Path(__file__).parents[1] / "docs" / "models.md"
_NOISE = 0.02
"""Standard deviation of what is added to every parameter: as it starts, a model hides
much (biases of 0, equal shares of several heads).
"""

_TITLE = f"""# What can be read of which model

Loss terms read more of a model than its logits. For one small variant of each of timm's model modules (of those that take an image of {SIDES[0]} to
{SIDES[-1]} pixels the one with the fewest parameters) this table says what kd_app reads of it in the one pass that gives the logits; `make models`
writes it. A number counts maps or blocks, 'no' has its reason below. What each field is stands in `kd_app/models/taps.py`; here each is proven:
the logits are the model's own, `classifier(embedding)` are the logits, the tokens are the last maps, query, key, value and bias of the last block
give what the model's fused attention gave, and every field has a gradient.
"""


@dataclass(frozen=True)
class Row:
    """A line of the table: a variant, and of each of `FIELDS` what was read ('yes', how
    many, or 'no'); reasons say why not.
    """

    variant: Variant
    read: dict[str, str]
    reasons: dict[str, str]

    def line(self) -> str:
        """In Markdown."""
        known = self.variant
        cells = (
            known.module,
            f"`{known.name}`",
            f"{known.params:,}",
            str(known.side),
            *(self.read[name] for name in FIELDS),
        )
        return f"| {' | '.join(cells)} |"


class _Witness(TorchFunctionMode):
    """What the model's fused attention gave, seen from outside of the taps."""

    def __init__(self) -> None:
        super().__init__()
        self.gave: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch for each of its functions."""
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            self.gave.append(out)
        return out


def prove(variant: Variant) -> Row:
    """Read all of a variant that can be read, and check it. Raises AssertionError where
    something is not what it is said to be.
    """
    model, image = noised(variant), images(variant.side)
    reasons = {
        name: why for name, why in plan_taps(model, image[:1], 1).lacks.items() if name in FIELDS
    }
    reads = frozenset(name for name in FIELDS if name not in reasons)
    with _Witness() as witness:
        outputs = Taps(model, reads)(image)
    read = {name: "no" if name in reasons else _told(getattr(outputs, name)) for name in FIELDS}
    if read["pre_activation"] == "0":
        read["pre_activation"] = "no"
        reasons["pre_activation"] = "no activation is the last step of a stage"
    _check(model, image, outputs, witness.gave)
    return Row(variant, read, reasons)


def noised(variant: Variant) -> nn.Module:
    """The variant's model, with noise on all of its parameters."""
    model = variant.make()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(_NOISE * torch.randn_like(parameter))
    return model


def _told(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else "yes"


def _check(model: nn.Module, image: Tensor, outputs: Outputs, attended: list[Tensor]) -> None:
    with freeze_state(model):
        expected = model(image)
    assert outputs.logits is not None
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-3, atol=1e-4)
    if outputs.classifier is not None:
        assert outputs.embedding is not None
        torch.testing.assert_close(
            outputs.classifier(outputs.embedding), outputs.logits, rtol=1e-3, atol=1e-4
        )
    sizes = [one.shape[-1] * one.shape[-2] for one in outputs.features]
    assert sizes == sorted(sizes, reverse=True), f"maps of growing size: {sizes}"
    for tokens, grid in zip(outputs.tokens, outputs.features[-len(outputs.tokens) :], strict=False):
        assert torch.equal(tokens.patch, grid.flatten(2).mT)
    for block in outputs.attention:
        mixed = block.compute_weights() @ block.value
        assert any(
            one.shape == mixed.shape and torch.allclose(one, mixed, rtol=1e-3, atol=1e-4)
            for one in attended
        ), "not what was attended with"
    _check_gradients(model, outputs)


def _check_gradients(model: nn.Module, outputs: Outputs) -> None:
    """Every field has a gradient, and together they reach the model's first layer."""
    found = {field.name: list(_tensors(getattr(outputs, field.name))) for field in fields(Outputs)}
    assert all(tensor.requires_grad for tensors in found.values() for tensor in tensors), (
        "a field has no gradient"
    )
    first = next(p for p in model.parameters() if p.dim() > 1)
    total = torch.stack(
        [tensor.float().square().mean() for tensors in found.values() for tensor in tensors]
    ).sum()
    assert torch.autograd.grad(total, first)[0].any(), "the fields do not reach the first layer"


def _tensors(value: Any) -> Iterable[Tensor]:
    """The last tensor of a field that is one, or a list of some; the patches of tokens,
    the query of attention.
    """
    last = value[-1] if isinstance(value, list) and value else value
    first = last[0] if isinstance(last, tuple) else last
    return [first] if isinstance(first, Tensor) else []


def written(rows: list[Row]) -> str:
    """The page."""
    head = ["module", "variant", "parameters", "pixels", *FIELDS]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(row.line() for row in rows)]
    return "\n".join([_TITLE, *table, "", "## Why not", "", *_why(rows), ""])


def _why(rows: list[Row]) -> list[str]:
    """For each field and reason the modules."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, why in row.reasons.items():
            found.setdefault((name, why), []).append(row.variant.module)
    lines = []
    for (name, why), who in sorted(
        found.items(), key=lambda each: (FIELDS.index(each[0][0]), each[0][1])
    ):
        lines.append(f"- {name}: {why}: {', '.join(who)}")
    return lines


def listed() -> dict[str, tuple[Variant, str]]:
    """The variant of each module as the page has it, and its line."""
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(FIELDS) + 4 and cells[3].isdigit():
            found[cells[0]] = (
                Variant(
                    cells[0], cells[1].strip("`"), int(cells[2].replace(",", "")), int(cells[3])
                ),
                line,
            )
    return found


def main() -> None:
    """Print the page."""
    rows = []
    for module in modules():
        rows.append(prove(smallest(module)))
        gc.collect()
    print(written(rows), end="")


if __name__ == "__main__":
    main()
