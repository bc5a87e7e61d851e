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

from benchmarks.variants import SIDES, Variant, draw_images, find_smallest_variant, list_modules
from kd_app.models.hooks import freeze_state
from kd_app.models.outputs import Outputs
from kd_app.models.tap_plan import plan_taps
from kd_app.models.taps import Taps

FIELDS = ("logits", "embedding", "classifier", "features", "pre_activation", "tokens", "attention")
TABLE = Path(__file__).parents[1] / "docs" / "models.md"
_NOISE = 0.02
"""Standard deviation of the noise added to every parameter. Initial values hide errors
(zero biases, equal weights of several heads).
"""

_TITLE = f"""# What can be read of which model

Loss terms read more of a model than its logits. For each of timm's model modules, this table
shows which fields kd_app reads of one small variant, in the forward pass that computes the
logits. The variant is the one with the fewest parameters that accepts an image of {SIDES[0]} to
{SIDES[-1]} pixels. A number counts maps or blocks; the reason of each 'no' is below. The fields are
described in `kd_app/models/taps.py`. `make models` writes this page and checks each entry: the
logits equal the model's output, `classifier(embedding)` equals the logits, the tokens equal the
last maps, query, key, value and bias of the last block reproduce the output of the model's fused
attention, and every field has a gradient.
"""


@dataclass(frozen=True)
class Row:
    """A row of the table: a variant, and for each of `FIELDS` the result ('yes', a
    count, or 'no'). `reasons` explains each 'no'.
    """

    variant: Variant
    read: dict[str, str]
    reasons: dict[str, str]

    def to_markdown(self) -> str:
        """Return the row in Markdown."""
        variant = self.variant
        cells = (
            variant.module,
            f"`{variant.name}`",
            f"{variant.params:,}",
            str(variant.side),
            *(self.read[name] for name in FIELDS),
        )
        return f"| {' | '.join(cells)} |"


class _Witness(TorchFunctionMode):
    """Record the outputs of the model's fused attention, independently of the taps."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            self.outputs.append(out)
        return out


def check_variant(variant: Variant) -> Row:
    """Read all available fields of a variant and check them. Raises AssertionError if a
    field is wrong.
    """
    model, image = build_noised_model(variant), draw_images(variant.side)
    reasons = {
        name: reason
        for name, reason in plan_taps(model, image[:1], 1).missing.items()
        if name in FIELDS
    }
    reads = frozenset(name for name in FIELDS if name not in reasons)
    with _Witness() as witness:
        outputs = Taps(model, reads)(image)
    read = {
        name: "no" if name in reasons else _describe_field(getattr(outputs, name))
        for name in FIELDS
    }
    if read["pre_activation"] == "0":
        read["pre_activation"] = "no"
        reasons["pre_activation"] = "no activation is the last step of a stage"
    _check(model, image, outputs, witness.outputs)
    return Row(variant, read, reasons)


def build_noised_model(variant: Variant) -> nn.Module:
    """Return the variant's model with noise added to all parameters."""
    model = variant.build()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(_NOISE * torch.randn_like(parameter))
    return model


def _describe_field(value: Any) -> str:
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
        ), "not the attention of the model"
    _check_gradients(model, outputs)


def _check_gradients(model: nn.Module, outputs: Outputs) -> None:
    """Check that every field has a gradient, and that the gradients reach the first
    layer.
    """
    read = {field.name: list(_tensors(getattr(outputs, field.name))) for field in fields(Outputs)}
    assert all(tensor.requires_grad for tensors in read.values() for tensor in tensors), (
        "a field has no gradient"
    )
    first = next(p for p in model.parameters() if p.dim() > 1)
    total = torch.stack(
        [tensor.float().square().mean() for tensors in read.values() for tensor in tensors]
    ).sum()
    assert torch.autograd.grad(total, first)[0].any(), "the fields do not reach the first layer"


def _tensors(value: Any) -> Iterable[Tensor]:
    """Return the last tensor of a field: for tokens the patches, for attention the
    query.
    """
    last = value[-1] if isinstance(value, list) and value else value
    first = last[0] if isinstance(last, tuple) else last
    return [first] if isinstance(first, Tensor) else []


def render_page(rows: list[Row]) -> str:
    """Return the page."""
    head = ["module", "variant", "parameters", "pixels", *FIELDS]
    table = [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(row.to_markdown() for row in rows),
    ]
    return "\n".join([_TITLE, *table, "", "## Why not", "", *_why(rows), ""])


def _why(rows: list[Row]) -> list[str]:
    """Return a line for each field and reason, with the modules."""
    modules: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row.reasons.items():
            modules.setdefault((name, reason), []).append(row.variant.module)
    lines = []
    for (name, reason), names in sorted(
        modules.items(), key=lambda each: (FIELDS.index(each[0][0]), each[0][1])
    ):
        lines.append(f"- {name}: {reason}: {', '.join(names)}")
    return lines


def parse_table() -> dict[str, tuple[Variant, str]]:
    """Return the variant of each module on the page, and its row."""
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(FIELDS) + 4 and cells[3].isdigit():
            module, name, params, side = cells[:4]
            variant = Variant(module, name.strip("`"), int(params.replace(",", "")), int(side))
            rows[module] = (variant, line)
    return rows


def main() -> None:
    """Print the page."""
    rows = []
    for module in list_modules():
        rows.append(check_variant(find_smallest_variant(module)))
        gc.collect()
    print(render_page(rows), end="")


if __name__ == "__main__":
    main()
