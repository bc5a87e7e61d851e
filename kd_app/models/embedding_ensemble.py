"""Several teachers whose embeddings are combined into one."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError
from kd_app.config.errors import quote_some
from kd_app.config.records import read_record
from kd_app.models.composite import EnsembleModel, TeacherEnsemble
from kd_app.models.create import create, resolve_input
from kd_app.models.spec import ImageStats, LoadedModel, ModelSpec
from kd_app.models.weights import WeightsReport

Combination = Literal["concatenate", "mean"]
_LARGEST: Final = 1e37
"""Of the numbers of an embedding and their squares, which are computed in float32."""
_EXPECTED: Final = (
    "Expected: mean and variance of the embedding of each member, as measured by the run. Remove"
    " the folder of the stage moments-teacher to measure them again, or name an unmodified run."
)


@dataclass(frozen=True)
class Moments:
    """The mean ``[D]`` of a member's embeddings, and their mean squared distance from
    it.
    """

    mean: Annotated[
        Sequence[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]], Field(min_length=1)
    ]
    variance: Annotated[float, Field(ge=1 / _LARGEST, le=_LARGEST)]

    def to_json(self) -> dict[str, Any]:
        """The moments as plain data."""
        return {"mean": list(self.mean), "variance": self.variance}


class EmbeddingEnsemble(TeacherEnsemble):
    """Several teachers whose embeddings are standardized and combined.

    ``z_m = (f_m - mean_m) / sqrt(v_m)``, with ``v_m = E |f_m - mean_m|^2`` over the
    training images, gives every member the same mean squared length, whatever its scale
    and width. by: 'concatenate' returns ``(sqrt(w_m) z_m)_m``, so that the inner
    product of two images is the weighted mean of the members' ones; 'mean' returns
    ``sum_m w_m z_m``, for members of one width whose dimensions mean the same (trained
    from the same weights). The weights w sum to 1.

    One scale for all dimensions of a member, as in PHI-S (Ranzinger, Barker, Heinrich,
    Molchanov, Catanzaro, Tao, "PHI-S: Distribution Balancing for Label-Free
    Multi-Teacher Distillation", ICLR 2025, arXiv 2410.01680). The rotation of that
    method is left out: it changes no inner product.

    moments: the file that `write_moments` wrote.
    """

    def __init__(
        self,
        members: Mapping[str, ModelSpec],
        weights: Mapping[str, float],
        by: Combination,
        moments: Path | None = None,
    ) -> None:
        super().__init__(members, weights, "mean")
        self.combination: Combination = by
        self.moments = moments

    def bind_embedding(self) -> None:
        """Raises `RequestError` for a member with random weights, or without an
        embedding.
        """
        for name, member in self.members.items():
            if not member.origin.has_weights:
                raise RequestError(
                    f"The teacher's member {name} ({member.name}) has random weights, so its"
                    " embedding says nothing about images. Expected: pretrained weights. Name a"
                    f" model with a tag (teacher.members.{name}.name=resnet50.a1_in1k), or weights"
                    f" of your own (teacher.members.{name}.checkpoint=<file or folder>)."
                )
            member.bind_embedding()
        super().bind_embedding()

    def describe_embedding(self) -> str:
        parts = (f"{name}: {each.describe_embedding()}" for name, each in self.members.items())
        verb = {"concatenate": "one after the other", "mean": "averaged"}[self.combination]
        return f"{', '.join(parts)}; {verb}"

    def to_json(self) -> dict[str, Any]:
        path = None if self.moments is None else str(self.moments.absolute())
        return {**super().to_json(), "by": self.combination, "moments": path}

    def create_members(self, image_stats: ImageStats) -> dict[str, LoadedModel]:
        """Build the members without their heads."""
        return {
            name: create(member, resolve_input(member, image_stats), 0, seed=0)
            for name, member in self.members.items()
        }

    def build(self, input_spec: InputSpec, num_classes: int, *, seed: int) -> LoadedModel:
        """Build all members as one `EmbeddingEnsembleModel`. Raises `RequestError` for
        a mean of members of several widths.
        """
        assert self.moments is not None, "measure_moments comes first"
        moments = read_moments(self.moments, self.members)
        models = self.create_members(self.image_stats)
        widths = {name: len(each.mean) for name, each in moments.items()}
        if self.combination == "mean" and len(set(widths.values())) > 1:
            described = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise RequestError(
                "teacher.by=mean averages embeddings of one width, and the members have several"
                f" ({described}). Set teacher.by=concatenate."
            )
        model = EmbeddingEnsembleModel(
            {name: (each.model, each.pixels) for name, each in models.items()},
            list(self.weights.values()),
            self.combination,
            [moments[name] for name in models],
            input_spec,
        )
        source = "; ".join(f"{name}: {each.weights.source}" for name, each in models.items())
        identity = [
            (each.weights.sha256, self.weights[name], moments[name].to_json())
            for name, each in models.items()
        ]
        sha256 = hashlib.sha256(f"{self.combination}:{identity}".encode()).hexdigest()
        matched = sum(each.weights.matched for each in models.values())
        report = WeightsReport(source, sha256, matched, notes=_describe_members(moments))
        return LoadedModel(model.eval(), input_spec, report)


def _describe_members(moments: Mapping[str, Moments]) -> tuple[str, ...]:
    return tuple(
        f"has the member {name}, whose embedding of {len(each.mean):,} numbers is"
        f" divided by {each.variance**0.5:.3g}, its distance from the mean"
        for name, each in moments.items()
    )


def read_moments(path: Path, members: Collection[str]) -> dict[str, Moments]:
    """Read the output of `Moments.to_json` by member, in the order of `members`.

    Raises `RequestError` for a damaged file, and for one of other members.
    """
    moments = read_record(path, dict[str, Moments], expected=_EXPECTED)
    if set(moments) != set(members):
        raise RequestError(
            f"{str(path)!r} describes {quote_some(list(moments)) or 'no teacher'}, and the"
            f" teacher's members are {quote_some(list(members))}. {_EXPECTED}"
        )
    return {name: moments[name] for name in members}


class EmbeddingEnsembleModel(EnsembleModel):
    """The module of an `EmbeddingEnsemble`. Input: images normalized according to
    `input_spec`.
    """

    def __init__(
        self,
        members: Mapping[str, tuple[nn.Module, InputSpec]],
        shares: list[float],
        by: Combination,
        moments: Sequence[Moments],
        input_spec: InputSpec,
    ) -> None:
        super().__init__(members, shares, "mean", input_spec)
        self.reason = (
            "several teachers give a combined embedding and nothing else in common;"
            " loss.<term>.teacher=<member> selects the member that a term reads"
        )
        self.combination = by
        for number, each in enumerate(moments):
            self.register_buffer(f"mean_{number}", torch.tensor(each.mean, dtype=torch.float32))
        self.scales = [each.variance**-0.5 for each in moments]

    def combine(
        self, image: Tensor, logits: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch embedding"]:
        """Return the combined embedding. logits: precomputed embeddings of members."""
        blocks = []
        members = zip(self.names, self.models, self.views, self.scales, strict=True)
        for number, (name, model, view, scale) in enumerate(members):
            embedding = logits[name] if name in logits else model(view(image))
            mean: Tensor = getattr(self, f"mean_{number}")
            if embedding.shape[1:] != mean.shape:
                raise RequestError(
                    f"The embedding of the teacher's member {name} has {embedding.shape[1]:,}"
                    f" numbers, and its recorded mean has {len(mean):,}. {_EXPECTED}"
                )
            blocks.append((embedding.float() - mean) * scale)
        if self.combination == "mean":
            return torch.einsum("m,mbd->bd", self.shares, torch.stack(blocks))
        parts = [share.sqrt() * block for share, block in zip(self.shares, blocks, strict=True)]
        return torch.cat(parts, dim=1)
