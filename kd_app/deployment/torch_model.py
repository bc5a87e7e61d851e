"""A module of torch behind the face of an artifact: 8-bit images in, logits out."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from kd_app.config import InputSpec
from kd_app.data.normalize import normalize
from kd_app.deployment.runtimes.base import prepare_image


@dataclass(frozen=True)
class TorchModel:
    """`module`, which answers normalized images in `classes`, fed as `pixels` say; on
    `device` and in eval mode from then on.
    """

    module: nn.Module
    classes: tuple[str, ...]
    pixels: InputSpec
    device: torch.device

    def __post_init__(self) -> None:
        self.module.eval().to(self.device).to(memory_format=torch.channels_last)

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``images[B, C, H, W] -> [B, K]``, in float32."""
        with torch.inference_mode():
            seen = normalize(
                torch.from_numpy(images).to(self.device), self.pixels, torch.channels_last
            )
            answered: NDArray[np.float32] = self.module(seen).float().cpu().numpy()
        return answered

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """See `kd_app.deployment.artifact.Artifact`."""
        return prepare_image(image, self.pixels)
