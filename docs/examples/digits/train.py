"""Train a small network on real handwritten digits with hydrax_gpu, from PNG files to over 97 % accuracy.

    make demo                   train, print a report, write two pictures
    make demo ARGS=--resume     go on where Ctrl-C stopped the last run, at the very next batch
    make demo ARGS='--data DIR --workdir .mine'    train on your own pictures: DIR has a folder for each class

What to look for: the arrays are declared once (`ARRAYS`); training and validation come from one loader; the loop below
is the whole training loop; and the run can be stopped and resumed anywhere, because the order of the data is a pure
function of the seed, the epoch and the step.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dataset import read_digits, write_digits
from folders import new_image_loader, read_folders
from loader import SIDE, load_digit
from model import new_model, restore, right_answers, save, train_step
from pictures import contact_sheet, curves

from hydrax_gpu import ArraySpec, DataGroup, Dataloader, TrainingBatch, ValidationBatch
from hydrax_gpu.tqdm import tbatches

GOAL = 0.97
EPOCHS = 24
BATCH = 64

# One declaration gives the memory's layout, the views that load_digit fills and the jax.Arrays of a batch.
ARRAYS = {
    "image": ArraySpec((SIDE, SIDE, 1), np.uint8, jnp.uint8),
    "label": ArraySpec((), np.int32, jnp.int32),
}


class Data(NamedTuple):
    """What there is to train on, and the loader function for it."""

    name: str
    load: Any
    arrays: Any
    training: list[Any]
    validation: list[Any]
    channels: int = 1
    classes: int = 10


def digits(folder: Path) -> Data:
    write_digits(folder)
    return Data("digits", load_digit, ARRAYS, read_digits(folder / "train"), read_digits(folder / "valid"))


def pictures_of(folder: Path) -> Data:
    classes, training, validation = read_folders(folder)
    load = new_image_loader()  # which declares its arrays itself
    return Data(folder.name, load, load.arrays(), training, validation, channels=3, classes=len(classes))


def new_loader(data: Data, epochs: int, start_at: Any) -> Dataloader[Any]:
    # 1,433 digits are 22 batches of 64; the 25 left over are other ones in each epoch, and the report counts them
    batch = min(BATCH, len(data.training))
    training = DataGroup(batch, data.training, loader_arrays=data.arrays, seed=1, shuffle_first=True)
    # here every picture must count, once: the last batch is padded, and batch.valid tells the padding apart
    validation = DataGroup(batch, data.validation, loader_arrays=data.arrays, remainder="pad")
    return Dataloader(
        data.load,
        training,
        validation=("epoch", 1, validation),  # after every epoch
        loader_count=2,  # worker processes
        depth=4,  # batches in memory at most
        start_at=start_at,
        end_at=("epoch", epochs),
        on_error="replace",  # a bad file costs one row, and not a batch; the report names it
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="train on handwritten digits with hydrax_gpu")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"how many epochs in all (default: {EPOCHS})")
    parser.add_argument("--workdir", type=Path, default=Path(".demo"), help="for all files made (default: .demo)")
    parser.add_argument("--data", type=Path, help="your own pictures: a folder with a folder for each class")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of a run that was stopped")
    options = parser.parse_args()

    workdir: Path = options.workdir
    checkpoint = workdir / "checkpoint.npz"
    workdir.mkdir(parents=True, exist_ok=True)
    data = digits(workdir / "digits") if options.data is None else pictures_of(options.data)
    goal = GOAL if options.data is None else None

    # `notes` is what a resumed run must know besides the model; it is small, and plain JSON
    model = new_model(data.channels, data.classes)
    notes: dict[str, Any] = {"accuracy": [], "waits": [], "waited": 0.0, "right": 0, "seen": 0, "loader": (0, 0)}
    if options.resume:
        if not checkpoint.exists():
            parser.error(f"there is no {checkpoint} to resume from; start without --resume")
        model, notes = restore(checkpoint, model)
        if len(notes["accuracy"]) >= options.epochs:
            parser.error(f"{checkpoint} has {options.epochs} epochs behind it already; ask for more with --epochs")

    loader = new_loader(data, options.epochs, start_at=notes["loader"])
    print(f"{data.name}: {data.classes} classes; {loader.batches_per_epoch} batches for training and", end=" ")
    print(f"{loader.batches_per_validation} for validation an epoch, on {jax.devices()[0]}")
    sheet_drawn = False
    asked = time.perf_counter()

    for batch in tbatches(loader):  # enters and leaves `with loader`, and shows the progress
        notes["waited"] += time.perf_counter() - asked
        image, label = batch.arrays["image"], batch.arrays["label"]

        if isinstance(batch, TrainingBatch):
            model, loss = train_step(model, image, label)
            if not sheet_drawn:
                # copies, for the batch's memory is used again once the batch is dropped
                title = f"epoch {batch.epoch}, batch {batch.epoch_batch}, as the model sees it"
                contact_sheet(workdir / "batch.png", np.array(image), np.array(label), title)
                sheet_drawn = True
            # wait for the step, so that the waiting measured above is for data alone
            jax.block_until_ready(loss)

        elif isinstance(batch, ValidationBatch):
            notes["right"] += int(right_answers(model, image, label, jnp.asarray(batch.valid)))
            notes["seen"] += int(np.sum(batch.valid))
            if batch.validation_epoch_batch == loader.batches_per_validation - 1:
                notes["accuracy"].append(notes["right"] / notes["seen"])
                notes["waits"].append(notes["waited"])
                notes.update(right=0, seen=0, waited=0.0)

        del batch, image, label  # gives the batch's memory back to the loader
        asked = time.perf_counter()

    # The position goes with the model it belongs to, so a resumed run misses no batch and repeats none.
    notes["loader"] = loader.state()
    save(checkpoint, model, notes)
    if loader.interrupted:
        print(f"\nstopped; {checkpoint} holds the model and the place in the data. Go on with --resume")
        return 130

    print(f"\n{loader.report()}\n")
    curves(workdir / "curves.png", notes["accuracy"], notes["waits"], goal)
    print(f"pictures: {workdir / 'batch.png'} and {workdir / 'curves.png'}")
    accuracy = notes["accuracy"][-1]
    print(f"validation accuracy after {len(notes['accuracy'])} epochs: {accuracy:.2%}")
    if goal is not None and options.epochs >= EPOCHS and accuracy <= goal:
        print(f"That is not over {goal:.0%}, which the demo promises after {EPOCHS} epochs.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
