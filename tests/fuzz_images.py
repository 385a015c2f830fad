"""Mutates small pictures of every kind and loads them: each is a row or an `ImageError`, whatever was done to it.

    python -m tests.fuzz_images --count 100000 --seed 7

What is checked of each mutant, in a process that a crash would end:

- nothing but `ImageError` is raised;
- nothing is written outside of the row;
- with an error the row is as it was;
- without one every byte of the row was written, and the same mutant gives the same row again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hydrax_gpu import ImageError
from hydrax_gpu._decode.chain import DECODERS
from hydrax_gpu.loaders import CenterCrop, ImageLoader, RandomResizedCrop
from tests import image_files as pictures

SIDE = 12
GUARD = 64


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_bytes(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))


def set_words(rng: random.Random, data: bytearray) -> None:
    """Sizes, counts and offsets are words: makes one of the first absurd."""
    at, width = rng.randrange(max(1, min(len(data) - 4, 200))), rng.choice((2, 4))
    data[at : at + width] = rng.choice((b"\0" * width, b"\xff" * width, b"\x7f" + b"\xff" * (width - 1)))


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[1 + rng.randrange(len(data)) :]


def cut(rng: random.Random, data: bytearray) -> None:
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.randrange(1, 40)]
    data += b"" if data else b"\0"


def repeat(rng: random.Random, data: bytearray) -> None:
    begin = rng.randrange(len(data))
    data[begin:begin] = data[begin : begin + rng.randrange(1, 60)] * rng.randrange(1, 4)


def append(rng: random.Random, data: bytearray) -> None:
    data += rng.randbytes(rng.randrange(1, 100))


MUTATIONS: Sequence[Callable[[random.Random, bytearray], None]] = (
    flip_bits, flip_bits, set_bytes, set_words, truncate, cut, repeat, append,
)  # fmt: skip


def mutant(kind: str, seed: int) -> bytes:
    """A file of that kind that something was done to."""
    rng = random.Random(f"{kind} {seed}")
    data = bytearray(pictures.kinds(24, 18)[kind])
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


def loaders(library: str | None) -> Iterator[tuple[str, ImageLoader]]:
    """One for each JPEG decoder, and one more for gray pictures, centre crops and profiles."""
    options: dict[str, Any] = {"max_pixels": 1 << 20}
    each = [(name, ImageLoader(SIDE, crop=RandomResizedCrop(), decoders=[name], **options)) for name in DECODERS]
    each.append(("gray", ImageLoader(SIDE, crop=CenterCrop(), color="gray", srgb=True, **options)))
    for name, loader in each:
        if library is not None:
            loader._begin(library)
        if loader._host is not None or name != DECODERS[0]:
            yield name, loader


class Checker:
    """Loads mutants into rows between guards."""

    def __init__(self, library: str | None = None) -> None:
        self.outcomes: Counter[str] = Counter()
        self._loaders = list(loaders(library))

    def check(self, kind: str, seed: int) -> None:
        """Raises AssertionError, or what the loader raises, if it is not as it should be."""
        data = mutant(kind, seed)
        name, loader = self._loaders[seed % len(self._loaders)]
        channels = loader.declaration.channels
        rows: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
        for fill in (0x55, 0xAA, 0x55):
            memory = np.full(GUARD + SIDE * SIDE * channels + GUARD, fill, np.uint8)
            row = memory[GUARD:-GUARD].reshape(SIDE, SIDE, channels)
            try:
                loader(data, {"image": row}, seed)
            except ImageError as error:
                assert error.reason
                assert (memory == fill).all(), f"{kind} {seed}: an error, and something was written"
                self.outcomes[f"{name}: refused"] += 1
                return
            assert (memory[:GUARD] == fill).all(), f"{kind} {seed}: written before the row"
            assert (memory[-GUARD:] == fill).all(), f"{kind} {seed}: written behind the row"
            rows.append(row.copy())
        assert (rows[0] == rows[2]).all(), f"{kind} {seed}: not the same again"
        assert (rows[0] == rows[1]).all(), f"{kind} {seed}: part of the row was not written"
        self.outcomes[f"{name}: read"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description="load mutated pictures of every kind")
    parser.add_argument("--count", type=int, default=20_000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--library", help="another host library than that of the package")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    checker = Checker(options.library)
    slowest = (0.0, "")
    for number, kind in enumerate(pictures.kinds(24, 18)):
        for seed in range(options.seed, options.seed + options.count):
            begin = time.perf_counter()
            checker.check(kind, seed)
            slowest = max(slowest, (time.perf_counter() - begin, f"{kind} {seed}"))
        print(f"{number + 1:2} {kind}: {dict(sorted(checker.outcomes.items()))}", flush=True)
    print(f"slowest: {slowest[1]} took {slowest[0]:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
