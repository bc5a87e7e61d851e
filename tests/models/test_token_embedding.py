"""The class token as an embedding."""

from typing import Any

import pytest
import timm
import torch

from kd_app.config import RequestError
from kd_app.models.token_embedding import TokenEmbedding, TokenKind

KINDS: tuple[TokenKind, ...] = ("class_token", "both")


def test_the_class_token_and_the_mean_of_the_patches_are_those_of_timm() -> None:
    torch.manual_seed(0)
    net: Any = timm.create_model(
        "deit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=0
    ).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = net.forward_features(image)
        token, both = (TokenEmbedding(net, kind)(image) for kind in KINDS)
    torch.testing.assert_close(token, tokens[:, 0])
    torch.testing.assert_close(both, torch.cat((tokens[:, 0], tokens[:, 1:].mean(dim=1)), dim=1))


def test_a_net_that_norms_what_it_pools_norms_each_part() -> None:
    torch.manual_seed(0)
    net: Any = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=1,
        embed_dim=24,
        num_heads=2,
        num_classes=0,
        global_pool="avg",
    ).eval()
    assert isinstance(net.norm, torch.nn.Identity)
    with torch.no_grad():
        net.fc_norm.weight.fill_(3)
        image = torch.randn(2, 3, 32, 32)
        token, patches = TokenEmbedding(net, "both")(image).split(24, dim=1)
        # timm pools the patches, then norms
        torch.testing.assert_close(patches, net(image))
        torch.testing.assert_close(token, net.fc_norm(net.forward_features(image)[:, 0]))


def test_a_net_without_a_class_token_is_refused() -> None:
    net = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(RequestError, match=r"ResNet has\s+none.*teacher\.embedding=pooled"):
        TokenEmbedding(net, "both")
