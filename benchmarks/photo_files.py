"""JPEG files of photographs for benchmarks, made from the two of scikit-learn (CC BY):
random parts of them, enlarged to the size of usual photographs.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

CLASSES = ("china", "flower")
_SMALLEST_PART = 0.6


def write_photos(
    folder: Path, images: int, *, width: int = 500, height: int = 375, quality: int = 90
) -> Path:
    """Write `images` JPEG files in a folder for each class, and return the folder."""
    random = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        photo = photos[number % 2]
        share = random.uniform(_SMALLEST_PART, 1) * min(
            1, photo.height / photo.width * width / height
        )
        across, down = share * photo.width, share * photo.width * height / width
        left, top = random.uniform(0, photo.width - across), random.uniform(0, photo.height - down)
        box = (left, top, left + across, top + down)
        part = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if random.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        part.save(folder / CLASSES[number % 2] / f"{number:05}.jpg", quality=quality)
    return folder
