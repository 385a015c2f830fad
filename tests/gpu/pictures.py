"""What the GPU's tests of pictures do, on any device: the same loader on the CPU is what they compare with."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from hydrax_gpu import DataGroup, Dataloader, ErrorPolicy
from hydrax_gpu._kernels.resize_crop_flip_normalize import Args, Box, Item, Resize, Turn, aim, measure, taps
from hydrax_gpu._mem.encoded import PictureRows
from hydrax_gpu._place.device import Device
from hydrax_gpu.loaders import CenterCrop, ImageLoader
from tests import image_files as pictures

LABELS = {"label": ((), np.int32, np.int32)}

LEAST_DB, MEAN_DB = 30.0, 35.0
"""How close a device's pixels are to the CPU's: decoders of JPEG differ in the inverse transform and in how they
interpolate chroma, and the CPU decodes large pictures at a part of their size."""

LOADERS: dict[str, Any] = {
    "random crop": lambda: ImageLoader((64, 80), labels=LABELS),
    "floats, channels first": lambda: ImageLoader(
        56, layout="CHW", dtype=np.float32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), labels=LABELS
    ),
    "half floats": lambda: ImageLoader(48, dtype=np.float16, labels=LABELS),
    "gray": lambda: ImageLoader((40, 72), color="gray", labels=LABELS),
    "middle": lambda: ImageLoader(60, crop=CenterCrop(), flip=False, labels=LABELS),
    "whole": lambda: ImageLoader((50, 30), crop=None, labels=LABELS),
}


def photographs() -> list[tuple[bytes, int]]:
    """Of several sizes, in every orientation, with several kinds of chroma, progressive ones among them."""
    files: list[bytes] = []
    for number in range(24):
        image = pictures.photograph(120 + 17 * (number % 5), 100 + 13 * (number % 4), number)
        if number % 3 == 0:
            files.append(pictures.oriented(image, 1 + number // 3 % 8))
        elif number % 3 == 1:
            files.append(pictures.encoded(image, subsampling=("4:2:0", "4:4:4", "4:2:2")[number // 3 % 3]))
        else:
            files.append(pictures.encoded(image if number % 2 else image.convert("L"), progressive=number % 4 == 1))
    return [(data, number) for number, data in enumerate(files)]


def damaged() -> list[tuple[bytes, int]]:
    """Photographs, among which 3 is cut off, 8 is cut off and has an end all the same, and 12 is no picture."""
    files = photographs()
    for number, data in ((3, files[3][0][:900]), (8, files[8][0][:900] + b"\xff\xd9"), (12, b"no picture at all")):
        files[number] = data, number
    return files


@dataclass
class Run:
    """What came out of a loader: for each row its item, for each item its picture of the last epoch; and the report."""

    rows: list[int] = field(default_factory=list[int])
    images: list[np.ndarray[Any, Any]] = field(default_factory=list["np.ndarray[Any, Any]"])
    report: Any = None
    platforms: set[str] = field(default_factory=set[str])


def run(
    load: Any,
    files: Any,
    device: contextlib.AbstractContextManager[Any] | None = None,
    *,
    arrays: Any = None,
    size: int = 5,
    remainder: Any = "pad",
    epochs: int = 2,
    **options: Any,
) -> Run:
    """Two epochs, with shuffling, in the device's memory, or in the CPU's without one."""
    found = Run()
    group = DataGroup(
        size, files, loader_arrays=load.arrays() if arrays is None else arrays, seed=5, shuffle_first=True,
        remainder=remainder,
    )  # fmt: skip
    options = {"executor": "thread", "loader_count": 2, "delivery": "alias", "timeout_sec": 60} | options
    with device or contextlib.nullcontext(), Dataloader(load, group, end_at=("epoch", epochs), **options) as loader:
        for batch in loader:
            image, label = batch.arrays["image"], batch.arrays["label"]
            found.platforms |= {each.platform for each in image.devices()}
            found.rows += np.asarray(label).tolist()
            found.images += list(np.array(image))
            del batch, image, label
        found.report = loader.report()
    return found


def on_the_cpu(load: Any, files: Any, **options: Any) -> Run:
    """The same without a device of ours, whatever JAX has."""
    import jax

    with jax.default_device(jax.devices("cpu")[0]):
        return run(load, files, **options)


def as_bytes(image: np.ndarray[Any, Any], load: ImageLoader) -> np.ndarray[Any, Any]:
    """A row as grey levels, 0 to 255, unrounded."""
    what = load.declaration
    values = image.astype(np.float64)
    if what.dtype.name == "uint8":
        return values
    axis = (1, 1, -1) if what.layout == "HWC" else (-1, 1, 1)
    mean, std = np.reshape(what.mean, axis), np.reshape(what.std, axis)
    return 255 * (values * std + mean)


def compare(load: ImageLoader, got: Run, wanted: Run) -> list[float]:
    """The PSNR of each row in dB, of two runs that must have the same items in their rows."""
    assert got.rows == wanted.rows
    assert len(got.images) == len(wanted.images) > 0
    return [pictures.psnr(as_bytes(a, load), as_bytes(b, load)) for a, b in zip(got.images, wanted.images, strict=True)]


def check_like_the_cpu(kind: str, device: contextlib.AbstractContextManager[Any] | None) -> list[float]:
    """The device's rows are the CPU's: the same boxes, flips and turns, and nearly the same pixels."""
    load, files = LOADERS[kind](), photographs()
    wanted = on_the_cpu(load, files)
    got = run(LOADERS[kind](), files, device)
    assert got.report.pictures and not wanted.report.pictures, "by the device, and by the workers"
    assert not got.report.fallbacks, got.report.fallbacks
    decibels = compare(load, got, wanted)
    assert min(decibels) >= LEAST_DB and np.mean(decibels) >= MEAN_DB, decibels
    # or the comparison would show nothing: another crop of the same picture is far away
    both = zip(got.images, wanted.images, strict=True)
    other = [pictures.psnr(as_bytes(a, load), as_bytes(b, load)[:, ::-1]) for a, b in both]
    assert np.mean(other) < LEAST_DB
    return decibels


def check_damaged(mode: Any, device: contextlib.AbstractContextManager[Any] | None) -> Run:
    """Damaged files are bad items on the device as on the CPU, and the policy deals with them in the same way.

    What a device's decoder makes of data that end in the middle is its business: it may fill in gray, where the CPU's
    refuses. Of the others there is no doubt.
    """
    load = LOADERS["random crop"]()
    policy = ErrorPolicy(mode=mode)
    wanted = on_the_cpu(load, damaged(), on_error=policy)
    got = run(load, damaged(), device, on_error=policy)
    assert {3, 8, 12} == {bad.item for bad in wanted.report.bad}
    bad = {each.item for each in got.report.bad}
    assert {3, 12} <= bad <= {3, 8, 12}
    if bad == {3, 8, 12}:
        assert got.rows == wanted.rows and min(compare(load, got, wanted)) >= LEAST_DB
    return got


ROWS = [
    PictureRows(24, 31, 3, "HWC", np.dtype(np.uint8)),
    PictureRows(31, 24, 3, "CHW", np.dtype(np.uint8)),
    PictureRows(17, 17, 1, "HWC", np.dtype(np.uint8)),
    PictureRows(20, 300, 3, "CHW", np.dtype(np.float32), (0.01, 0.02, 0.005), (-1.0, 0.5, 0.25)),
    PictureRows(9, 40, 3, "HWC", np.dtype(np.float16), (0.01, 0.02, 0.005), (-1.0, 0.5, 0.25)),
    PictureRows(33, 12, 1, "CHW", np.dtype(jnp.bfloat16), (1 / 255,), (0.0,)),
]


def check_resizer(device: Device, rows: PictureRows, download: Callable[[int, int], bytes], count: int = 12) -> None:
    """The kernel's launch on a device makes the very bits that the twin makes, for boxes and turns of all kinds.

    Args:
        device: the device.
        rows: what it is to make.
        download: bytes of device memory, by address and number.
        count: of the batch.
    """
    rng = np.random.default_rng(rows.height)
    swap = bool(rows.height % 2)
    parts = [
        rng.integers(0, 256, (int(rng.integers(1, 90)), int(rng.integers(1, 90)), rows.channels), np.uint8)
        for _ in range(count)
    ]
    boxes: list[Box] = []
    turns: list[Turn] = []
    for part in parts:
        h, w = (int(rng.integers(1, 8 * extent + 1)) for extent in part.shape[:2])
        x, y = (int(rng.integers(0, 8 * part.shape[1 - k] - (w, h)[k] + 1)) for k in (0, 1))
        boxes.append(Box(x, y, w, h))
        turns.append(Turn(swap, *map(bool, rng.integers(0, 2, 2))))
    elements = int(np.prod(rows.shape))
    out_nbytes = count * elements * rows.dtype.itemsize
    height, width = (rows.width, rows.height) if swap else (rows.height, rows.width)
    args = Args(rows=count, out_stride=0)
    measure(args, height, width, max(taps(height, box.height) for box in boxes),
            max(taps(width, box.width) for box in boxes))  # fmt: skip
    sizes = [out_nbytes, ctypes.sizeof(Item) * count, 2 * args.table_count * count, *(part.nbytes for part in parts)]
    offsets = np.cumsum([0, *(-(-size // 256) * 256 for size in sizes)]).tolist()
    memory = device.allocate(offsets[-1], "device")
    out, items_at, args.table, *places = (memory.address + offset for offset in offsets[:-1])
    items = (Item * count)()
    stream = device.new_stream()
    for index, (item, part, box, turn, place) in enumerate(zip(items, parts, boxes, turns, places, strict=True)):
        device.copy_in(stream, place, part.ctypes.data, part.nbytes)
        item.picture, item.stride, item.pixel, item.columns = place, part.strides[0], rows.channels, part.shape[1]
        item.box[:] = box
        aim(item, rows.height, rows.width, rows.channels, rows.layout, turn)
        item.origin += index * elements
    device.copy_in(stream, items_at, ctypes.addressof(items), ctypes.sizeof(items))
    args.items, args.out = items_at, out
    device.resizer(rows)(stream, args)
    device.synchronize(stream)
    got = np.frombuffer(download(out, out_nbytes), np.uint8).reshape(count, -1)
    twin = Resize(None, rows.height, rows.width, rows.channels, rows.layout, rows.dtype, rows.scale, rows.bias)
    for index, (part, box, turn) in enumerate(zip(parts, boxes, turns, strict=True)):
        wanted = np.empty(rows.shape, rows.dtype)
        twin(part, box, wanted, turn=turn)
        np.testing.assert_array_equal(got[index], wanted.reshape(-1).view(np.uint8), err_msg=f"{box} {turn}")
