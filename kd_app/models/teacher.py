"""The frozen teacher, invisible to everything that trains, saves, copies or counts the
student.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_app.config import InputSpec, RequestError
from kd_app.models.outputs import EnsembleOutputs, Outputs
from kd_app.models.taps import Taps

_LUMA = (0.299, 0.587, 0.114)


@runtime_checkable
class Ensemble(Protocol):
    """Several models with combined logits."""

    @abstractmethod
    def select_member(self, name: str) -> tuple[nn.Module, nn.Module]:
        """Return the input adapter of a member, and the member."""

    @abstractmethod
    def combine(self, image: Tensor, logits: Mapping[str, Tensor]) -> Tensor:
        """Return the combined logits ``[B, K]``. `logits`: precomputed logits of
        members, used instead of running the member.
        """


class FrozenTeacher(nn.Module):
    """Run the teacher on images prepared for the student: ``teacher(image) ->
    Outputs``, without gradients, always in eval mode.

    The teacher follows ``.to()``, but the module owns no parameter, buffer, state or
    mode: nothing of the teacher reaches the optimizer, checkpoints, DDP, weight
    averaging or the parameter count. Input: images normalized for the student (`sees`).
    They are converted to the teacher's input spec `pixels`: channels, then ``x * std_s
    / std_t + (mean_s - mean_t) / std_t``, then size. `reads` and `attention_blocks`:
    see `Taps`. members: fields to read of single members of an `Ensemble`, by name; the
    result is then an `EnsembleOutputs`, and each member runs once per batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reads: frozenset[str],
        pixels: InputSpec,
        sees: InputSpec,
        attention_blocks: int = 1,
        members: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        # nn.Module registers no submodules inside a tuple.
        self._adapted_model = (model, InputAdapter(sees, pixels).eval())
        self._taps = Taps(model, reads, attention_blocks=attention_blocks)
        self._members: dict[str, tuple[nn.Module, Taps]] = {}
        for name, member_reads in (members or {}).items():
            assert isinstance(model, Ensemble)
            view, member = model.select_member(name)
            self._members[name] = (
                view,
                Taps(
                    member, member_reads | (reads & {"logits"}), attention_blocks=attention_blocks
                ),
            )

    @torch.no_grad()
    def forward(self, image: Tensor) -> Outputs:
        """Return all outputs of the teacher that loss terms read, for a batch ``[B, C,
        H, W]`` normalized for the student.
        """
        adapted = self._adapted_model[1](image)
        if not self._members:
            outputs: Outputs = self._taps(adapted)
            return outputs
        members = {name: taps(view(adapted)) for name, (view, taps) in self._members.items()}
        logits = {name: each.logits for name, each in members.items() if each.logits is not None}
        model = self._adapted_model[0]
        assert isinstance(model, Ensemble)
        return EnsembleOutputs(
            logits=model.combine(adapted, logits) if "logits" in self._taps.reads else None,
            members=members,
        )

    @property
    def model(self) -> nn.Module:
        """The wrapped teacher."""
        return self._adapted_model[0]

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Set only the flag of this wrapper: dropout, drop-path and BatchNorm of the
        teacher stay in eval mode.
        """
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenTeacher":
        for module in self._adapted_model:
            module._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        return self


class InputAdapter(nn.Module):
    """Convert images normalized for one model into images normalized for another."""

    luma: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, source: InputSpec, target: InputSpec) -> None:
        super().__init__()
        if source.channels not in (1, target.channels) and (source.channels, target.channels) != (
            3,
            1,
        ):
            raise RequestError(
                f"The student's images have {source.channels} channels, the teacher takes"
                f" {target.channels}. Set teacher.kwargs.in_chans={source.channels} (timm converts"
                " pretrained weights), or give the student images with the teacher's channels."
            )
        self.target = target
        self.to_gray = source.channels == 3 and target.channels == 1
        if self.to_gray:
            # Luma of the RGB pixels: sum_c luma_c * (x_c * std_c + mean_c).
            weight = torch.tensor(_LUMA) * torch.tensor(source.std)
            self.register_buffer("luma", weight.view(1, 3, 1, 1), persistent=False)
            mean, std = [sum(w * m for w, m in zip(_LUMA, source.mean, strict=True))], [1.0]
        else:
            repeat = target.channels if source.channels == 1 else 1
            mean, std = list(source.mean) * repeat, list(source.std) * repeat
        scale = torch.tensor(std) / torch.tensor(target.std)
        shift = (torch.tensor(mean) - torch.tensor(target.mean)) / torch.tensor(target.std)
        self.same = bool(torch.all(scale == 1) and torch.all(shift == 0))
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if self.to_gray:
            image = (image * self.luma).sum(dim=1, keepdim=True)
        elif image.shape[1] != self.target.channels:
            image = image.expand(-1, self.target.channels, -1, -1)
        if not self.same:
            image = torch.addcmul(self.shift, image, self.scale)
        size = (self.target.height, self.target.width)
        if image.shape[-2:] == size:
            return image
        smaller = image.shape[-2] > size[0]
        mode = "bicubic" if self.target.interpolation == "bicubic" else "bilinear"
        return F.interpolate(image, size=size, mode=mode, align_corners=False, antialias=smaller)
