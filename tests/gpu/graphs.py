"""What the GPU's tests of DALI graphs do, on any device: the same graph on the CPU is what they compare with."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from hydrax_gpu import ErrorPolicy
from hydrax_gpu.loaders import DaliLoader
from tests import dali_graphs
from tests import image_files as pictures
from tests.gpu.pictures import Run, damaged, on_the_cpu, photographs, run

ARRAYS = {"image": ((24, 32, 3), np.uint8, np.uint8), "label": ((), np.int32, np.int32)}

LEAST_DB, MEAN_DB = 27.0, 33.0
"""How close rows are to the CPU's: DALI's decoders and resizing differ between the two, and pictures this small have
more of what they differ in."""

Where = contextlib.AbstractContextManager[Any] | None


def augmenting(**options: Any) -> DaliLoader:
    """Random crop, resize, flip and brightness, all of it on the device."""
    return DaliLoader(dali_graphs.augment_there, fields=("image", "label"), device="gpu", **options)


def pipeline() -> DaliLoader:
    """A pipeline of the user's, which only resizes."""
    names = ("image", "label")
    return DaliLoader.from_pipeline(dali_graphs.as_it_is, inputs=names, outputs=names, fields=names, device="gpu")


def padded() -> DaliLoader:
    """Pictures as they are, filled up."""
    return DaliLoader(dali_graphs.as_large_as_it_is, fields=("image", "label"), device="gpu", pad={"image": 7})


LOADERS: dict[str, Any] = {
    "augmenting": (augmenting, ARRAYS),
    "pipeline": (pipeline, ARRAYS),
    "padded": (padded, ARRAYS | {"image": ((200, 220, 3), np.uint8, np.uint8)}),
}


def compare(got: Run, wanted: Run) -> list[float]:
    """The PSNR of each row in dB, of two runs that must have the same items in their rows."""
    assert got.rows == wanted.rows and len(got.images) == len(wanted.images) > 0
    return [pictures.psnr(a, b) for a, b in zip(got.images, wanted.images, strict=True)]


def check_like_the_cpu(kind: str, device: Where, **options: Any) -> list[float]:
    """The device's rows are the CPU's: the same draws, and nearly the same pixels; all of them come from the device."""
    make, arrays = LOADERS[kind]
    options = {"arrays": arrays, "epochs": 1} | options
    wanted, got = on_the_cpu(make(), photographs(), **options), run(make(), photographs(), device, **options)
    assert got.report.pictures and not wanted.report.pictures, got.report.notes
    assert not got.report.fallbacks, got.report.fallbacks
    decibels = compare(got, wanted)
    assert min(decibels) >= LEAST_DB and np.mean(decibels) >= MEAN_DB, decibels
    # or the comparison would show nothing: other draws for the same picture are far away
    other = [pictures.psnr(a[:, ::-1], b) for a, b in zip(got.images, wanted.images, strict=True)]
    assert np.mean(other) < LEAST_DB
    return decibels


def check_the_same_again(device: Where, again: Where) -> None:
    """Another order of loading comes to the same bits on the same device."""
    first = run(augmenting(), photographs(), device, arrays=ARRAYS, epochs=1)
    second = run(augmenting(), photographs(), again, arrays=ARRAYS, epochs=1, executor="inline")
    assert first.rows == second.rows
    assert all(np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True))


def check_damaged(device: Where) -> Run:
    """A damaged file is a bad item, its batch has all others, and the pipeline goes on.

    What a device's decoder makes of data that end in the middle is its business.
    """
    got = run(augmenting(), damaged(), device, arrays=ARRAYS, epochs=1, on_error=ErrorPolicy(mode="replace"))
    bad = {each.item for each in got.report.bad}
    assert 12 in bad and bad <= {3, 8, 12}
    assert got.report.pictures and len(got.images) == 25 and not {12} & set(got.rows)
    return got
