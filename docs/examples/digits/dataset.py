"""The data set of the demo: the 1,797 handwritten digits that come with scikit-learn, as PNG files on disk."""

import shutil
from pathlib import Path

import numpy as np
from loader import SIDE, Digit
from PIL import Image
from sklearn.datasets import load_digits

#: Every fifth picture of each digit is kept for validation.
HELD_OUT = 5


def write_digits(folder: Path) -> None:
    """Write `folder/{train,valid}/<digit>/<number>.png`, unless the folder is there already."""
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    images, labels = load_digits(return_X_y=True)
    seen = [0] * 10
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        split = "valid" if seen[label] % HELD_OUT == 0 else "train"
        seen[label] += 1
        # 8x8 pixels with 17 grey levels, enlarged to what a camera might have seen
        small = Image.fromarray((pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        path = unfinished / split / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    unfinished.rename(folder)


def read_digits(folder: Path) -> list[Digit]:
    """List the files under `folder`, in an order that does not depend on the file system."""
    return [(str(path), int(path.parent.name)) for path in sorted(folder.glob("*/*.png"))]
