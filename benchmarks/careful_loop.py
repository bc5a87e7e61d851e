"""The loop that a careful engineer writes by hand: the reference for the accuracy of
the default recipes.

AdamW with one cycle of the learning rate, random crops and flips, the weights of the
last epoch; distilled: 0.1 times the labels and 0.9 times the teacher's probabilities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LABEL_WEIGHT = 0.1
"""Of the labels beside soft targets of the weight 1 - LABEL_WEIGHT."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of one training. padding: pixels on each side before a random crop.
    temperature: of the soft targets. balance: of classes with unequal numbers of
    images: 'weights' of the loss, a 'sampler' that draws all classes equally often, or
    'none'.
    """

    epochs: int
    batch_size: int
    lr: float
    padding: int
    flip: bool
    temperature: float = 4.0
    weight_decay: float = 0.05
    precision: str = "32-true"
    balance: str = "none"


@dataclass(frozen=True)
class Images:
    """Pixels as uint8 ``[N, C, H, W]``, their classes, and the mean and the deviation
    of the channels (0..1) that the model expects.
    """

    pixels: Tensor
    target: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Floats for the model."""
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        image = (pixels.float() / 255 - mean) / std
        return image.contiguous(memory_format=torch.channels_last)


def train_carefully(
    student: nn.Module, teacher: nn.Module | None, data: Images, settings: LoopSettings, seed: int
) -> int:
    """Train the `student` in place and return the number of steps; teacher None: on
    labels only. Teacher and student see the same pixels.
    """
    student.train().to(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    steps = settings.epochs * -(-len(data.target) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps)
    shares = 1 / data.target.bincount()[data.target]
    weight = None
    if settings.balance == "weights":
        weight = len(data.target) / len(data.target.unique()) / data.target.bincount()
    for _ in range(settings.epochs):
        if settings.balance == "sampler":
            order = shares.multinomial(len(shares), replacement=True, generator=random)
        else:
            order = torch.randperm(len(shares), generator=random)
        for rows in order.split(settings.batch_size):
            image = data.normalize(_augment(data.pixels[rows], settings, random))
            with torch.autocast("cpu", torch.bfloat16, settings.precision == "bf16-mixed"):
                logits = student(image)
                with torch.no_grad():
                    soft = None if teacher is None else teacher(image)
            loss = F.cross_entropy(logits.float(), data.target[rows], weight)
            if soft is not None:
                t = settings.temperature
                kl = F.kl_div(
                    F.log_softmax(logits.float() / t, 1),
                    F.log_softmax(soft.float() / t, 1),
                    reduction="batchmean",
                    log_target=True,
                )
                loss = LABEL_WEIGHT * loss + (1 - LABEL_WEIGHT) * t**2 * kl
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return steps


def _augment(pixels: Tensor, settings: LoopSettings, random: torch.Generator) -> Tensor:
    """A random crop of the padded image for each image, half of them mirrored."""
    number, _, height, width = pixels.shape
    if settings.padding:
        padded = F.pad(pixels, (settings.padding,) * 4)
        offsets = torch.randint(0, 2 * settings.padding + 1, (2, number, 1), generator=random)
        rows = offsets[0] + torch.arange(height)
        columns = offsets[1] + torch.arange(width)
        image = torch.arange(number)[:, None, None]
        pixels = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if settings.flip:
        mirrored = torch.rand(number, generator=random) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    return pixels


@torch.no_grad()
def classify(model: nn.Module, data: Images) -> Tensor:
    """The predicted classes, ``[N]``."""
    model.eval()
    return torch.cat([model(data.normalize(each)).argmax(1) for each in data.pixels.split(256)])
