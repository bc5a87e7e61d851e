"""Whether a model has attention layers."""

import pytest

from kd_app.models.attention_layers import has_attention


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.0.attn.qkv.weight", True),
        ("layers.1.attention.query.weight", True),
        ("blocks.0.mlp.fc1.weight", False),
        ("head.q.weight", False),
    ],
)
def test_attention_is_known_by_the_names_of_its_projections(name: str, expected: bool) -> None:
    assert has_attention(["conv1.weight", name]) is expected
