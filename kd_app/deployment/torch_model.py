"""A torch module with the interface of an artifact: uint8 images in, logits out."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from kd_app.config import Decoding, InputSpec
from kd_app.data.normalize import normalize
from kd_app.data.preparation import prepare_image
from kd_app.deployment.logits import check_finite


@dataclass(frozen=True)
class TorchModel:
    """A `module` that maps normalized images to the logits of `classes`.

    name: the model in error messages.

    The constructor moves the module to `device` and switches it to eval mode.
    """

    module: nn.Module
    classes: tuple[str, ...]
    pixels: InputSpec
    decoding: Decoding
    device: torch.device
    name: str

    def __post_init__(self) -> None:
        self.module.eval().to(self.device).to(memory_format=torch.channels_last)

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``images[B, C, H, W] -> [B, K]``, in float32.

        Raises `NonFiniteLogitsError` for NaN or infinity.
        """
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device)
            image = normalize(batch, self.pixels, torch.channels_last)
            logits: NDArray[np.float32] = self.module(image).float().cpu().numpy()
        check_finite(logits, self.name)
        return logits

    def prepare_image(
        self, image: Image.Image, decoding: Decoding | None = None
    ) -> NDArray[np.uint8]:
        """Convert an opened image to ``[C, H, W]``; see `RuntimeFile.prepare_image`."""
        return prepare_image(image, self.pixels, decoding or self.decoding)
