"""The teacher: frozen, and invisible to everything that trains, saves, copies or counts
the student.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_app.config import InputSpec
from kd_app.models.outputs import Outputs, Panel
from kd_app.models.taps import Taps

_LUMA = (0.299, 0.587, 0.114)


@runtime_checkable
class Ensemble(Protocol):
    """Several models that answer as one."""

    @abstractmethod
    def select_member(self, name: str) -> tuple[nn.Module, nn.Module]:
        """What turns an image into what that model expects, and the model."""

    @abstractmethod
    def combine(self, image: Tensor, known: Mapping[str, Tensor]) -> Tensor:
        """Their one answer ``[B, K]``; `known`: the logits of those that were asked
        already.
        """


class FrozenTeacher(nn.Module):
    """Answers the student's view of an image: ``teacher(image) -> Outputs``, without
    gradient, in eval mode for ever.

    It follows ``.to()`` and owns no parameter, buffer, state or mode: nothing of it
    reaches the optimizer, checkpoints, DDP, an average of weights or the parameter
    count. The image comes normalized as the student `sees` it and is turned into the
    pixels the teacher expects: channels, then ``x * std_s / std_t + (mean_s - mean_t) /
    std_t``, then size. `reads` and `attention_blocks`: see `Taps`. members: what is
    read of each of several models by itself, by its name (a model that is `Ensemble`);
    the answer is a `Panel` then, and a member runs once a batch.
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
        self._held = (
            model,
            InputAdapter(sees, pixels).eval(),
        )  # a tuple: nn.Module registers nothing in it
        self._taps = Taps(model, reads, attention_blocks=attention_blocks)
        self._members: dict[str, tuple[nn.Module, Taps]] = {}
        for name, of_member in (members or {}).items():
            assert isinstance(model, Ensemble)
            view, member = model.select_member(name)
            self._members[name] = (
                view,
                Taps(member, of_member | (reads & {"logits"}), attention_blocks=attention_blocks),
            )

    @torch.no_grad()
    def forward(self, image: Tensor) -> Outputs:
        """All that the chosen terms read of the teacher, for a batch ``[B, C, H, W]``
        normalized for the student.
        """
        seen = self._held[1](image)
        if not self._members:
            outputs: Outputs = self._taps(seen)
            return outputs
        said = {name: taps(view(seen)) for name, (view, taps) in self._members.items()}
        known = {name: each.logits for name, each in said.items() if each.logits is not None}
        model = self._held[0]
        assert isinstance(model, Ensemble)
        return Panel(
            logits=model.combine(seen, known) if "logits" in self._taps.reads else None,
            members=said,
        )

    @property
    def model(self) -> nn.Module:
        """The teacher's own module."""
        return self._held[0]

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Only remembers the flag: dropout, drop-path and BatchNorm of the teacher stay
        as in evaluation.
        """
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenTeacher":
        for module in self._held:
            module._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        return self


class InputAdapter(nn.Module):
    """From pixels normalized for one model to pixels normalized for another."""

    luma: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, sees: InputSpec, wants: InputSpec) -> None:
        super().__init__()
        self.wants = wants
        self.to_gray = sees.channels == 3 and wants.channels == 1
        if self.to_gray:
            # gray of the colors: sum_c luma_c * (x_c * std_c + mean_c)
            weight = torch.tensor(_LUMA) * torch.tensor(sees.std)
            self.register_buffer("luma", weight.view(1, 3, 1, 1), persistent=False)
            mean, std = [sum(w * m for w, m in zip(_LUMA, sees.mean, strict=True))], [1.0]
        else:
            repeat = wants.channels if sees.channels == 1 else 1
            mean, std = list(sees.mean) * repeat, list(sees.std) * repeat
        scale = torch.tensor(std) / torch.tensor(wants.std)
        shift = (torch.tensor(mean) - torch.tensor(wants.mean)) / torch.tensor(wants.std)
        self.same = bool(torch.all(scale == 1) and torch.all(shift == 0))
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """The same image as the other model wants it."""
        if self.to_gray:
            image = (image * self.luma).sum(dim=1, keepdim=True)
        elif image.shape[1] != self.wants.channels:
            image = image.expand(-1, self.wants.channels, -1, -1)
        if not self.same:
            image = torch.addcmul(self.shift, image, self.scale)
        size = (self.wants.height, self.wants.width)
        if image.shape[-2:] == size:
            return image
        smaller = image.shape[-2] > size[0]
        mode = "bicubic" if self.wants.interpolation == "bicubic" else "bilinear"
        return F.interpolate(image, size=size, mode=mode, align_corners=False, antialias=smaller)
