"""A minimal hand-written distillation loop on images in memory: the reference for the
speed of the training loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 2
TEMPERATURE = 4.0


@dataclass
class BareLoop:
    """AdamW on cross-entropy plus soft targets, with batched crop and flip, autocast
    according to `precision`, and channels-last; no logging, no validation.

    images: uint8 ``[N, 1, H, W]``; mean and std of the pixels in 0..1.
    """

    student: nn.Module
    teacher: nn.Module
    images: Tensor
    target: Tensor
    batch_size: int
    precision: str
    mean: float
    std: float

    def __post_init__(self) -> None:
        self.student = self.student.train().to(memory_format=torch.channels_last)
        self.teacher = (
            self.teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        )
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=1e-3, weight_decay=0.05, fused=True
        )
        self.side = self.images.shape[-1]
        padded = F.pad(self.images[:, 0], (PADDING,) * 4)
        number, wide = len(padded), padded.shape[-1]
        offsets = 2 * PADDING + 1
        windows = (number, offsets, offsets, self.side, self.side)
        self.windows = padded.as_strided(windows, (wide * wide, wide, 1, wide, 1))
        self.generator = torch.Generator().manual_seed(0)

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Return a random batch, cropped, flipped and normalized."""
        size = (self.batch_size,)
        index = torch.randint(0, len(self.images), size, generator=self.generator)
        top, left = (
            torch.randint(0, 2 * PADDING + 1, size, generator=self.generator) for _ in range(2)
        )
        image = self.windows[index, top, left]
        flip = torch.rand(size, generator=self.generator) < 0.5
        image[flip] = image[flip].flip(-1)
        return ((image.float() / 255 - self.mean) / self.std).unsqueeze(1).contiguous(
            memory_format=torch.channels_last
        ), self.target[index]

    def run(self, steps: int) -> None:
        """Train for `steps` steps."""
        for _ in range(steps):
            image, target = self.draw_batch()
            with torch.autocast(
                "cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16-mixed"
            ):
                with torch.no_grad():
                    teacher = self.teacher(image)
                student = self.student(image)
            student, teacher = student.float(), teacher.float()
            soft = F.kl_div(
                F.log_softmax(student / TEMPERATURE, 1),
                F.log_softmax(teacher / TEMPERATURE, 1),
                reduction="batchmean",
                log_target=True,
            )
            loss = F.cross_entropy(student, target) + TEMPERATURE**2 * soft
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
