"""Your own pictures: a folder that has a folder for each class, with files of any formats in it."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from loader import SIDE

from hydrax_gpu.loaders import CenterCrop, ImageLoader, RandomResizedCrop

#: What one item of the data set is: the path of its file, and the number of its class.
Picture = tuple[str, int]

#: Every fifth file of a class is kept for validation.
HELD_OUT = 5


def read_folders(folder: Path) -> tuple[list[str], list[Picture], list[Picture]]:
    """List the classes, the training items and the validation items, in an order that every file system gives.

    Whether a file is a picture shows when it is read: a bad one costs its batch, or is replaced, and is reported.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    training: list[Picture] = []
    validation: list[Picture] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file() and not path.name.startswith("."))
        for number, path in enumerate(files):
            (training if number % HELD_OUT else validation).append((str(path), label))
    if len(classes) < 2 or not training or not validation:
        raise SystemExit(
            f"{folder} holds {len(classes)} folders with files in them; wanted one for each of the classes"
        )
    return classes, training, validation


def new_image_loader() -> ImageLoader:
    """Random crops for training, the middle for validation, as bytes: the model makes floats of them."""
    return ImageLoader(
        SIDE,
        crop=RandomResizedCrop(scale=(0.4, 1.0)),
        validation_crop=CenterCrop(),
        labels={"label": ((), np.int32, jnp.int32)},
    )
