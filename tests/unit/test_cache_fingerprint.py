"""The fingerprint of data descriptors: equal data has the same anywhere, and other data another."""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._cache import fingerprint
from hydrax_gpu._cache.fingerprint import ALL, SAMPLE

ROOT = Path(__file__).resolve().parents[2]


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Clip:
    path: str
    start: float = 0.0


class Plain:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


DATA: list[Any] = [
    0, 1, -1, 2**80, True, False, None, 0.0, -0.0, 1.5, float("nan"), 1j, "", "a", "ab", b"ab", "1", b"", (), [], {},
    (1, 2), [1, 2], ((1,), 2), (1, (2,)), {"a": 1}, {"a": 2}, {1, 2}, {"a", "b"}, range(3), range(0, 3, 2),
    PurePosixPath("a"), PurePosixPath("b"), Colour.RED, Colour.BLUE, Clip("a"), Clip("a", 1.0), Plain(a=1), Plain(b=1),
    Slotted(1), Slotted(2), np.float32(1), np.float64(1), np.arange(3), np.arange(3.0), np.arange(3)[:, None],
    np.array(["a", None], object), np.array(["a", "b"], object), np.datetime64("2026-01-01"), len, sum,
]  # fmt: skip


def test_all_kinds_of_descriptors_differ() -> None:
    assert len({fingerprint([each]) for each in DATA}) == len(DATA)
    assert fingerprint([]) != fingerprint([None]) != fingerprint([None, None])
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"]) != fingerprint(["ab", ""])


def test_equal_data_is_the_same() -> None:
    assert fingerprint([{"a": 1, "b": 2}]) == fingerprint(({"b": 2, "a": 1},))
    assert fingerprint([Plain(a=1, b=2)]) == fingerprint([Plain(b=2, a=1)])
    big = np.arange(3).astype(">i8")
    assert fingerprint([np.arange(3)]) == fingerprint([big])
    assert fingerprint([np.arange(6)[::2]]) == fingerprint([np.array([0, 2, 4])])


def test_another_process_finds_the_same() -> None:
    # under the name that it has here, which is in the pickle of what has slots
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from {__name__} import *\n"
    script += "print(fingerprint(DATA))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.stdout.strip() == fingerprint(DATA)


class Virtual:
    """Much data that is never there at once."""

    def __init__(self, length: int, odd: int = -1) -> None:
        self.length, self.odd, self.asked = length, odd, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        assert 0 <= index < self.length
        self.asked += 1
        return -1 if index == self.odd else index


def test_all_are_looked_at_up_to_a_number_and_then_a_sample() -> None:
    small, large = Virtual(ALL), Virtual(1 << 40)
    assert fingerprint(small) == fingerprint(list(range(ALL))) and small.asked == ALL  # pyright: ignore
    assert fingerprint(large) == fingerprint(Virtual(1 << 40)) and large.asked == SAMPLE  # pyright: ignore
    assert fingerprint(Virtual(ALL, 777)) != fingerprint(small)  # pyright: ignore
    for odd in (0, (1 << 40) - 1, 12345 * ((1 << 40) - 1) // (SAMPLE - 1)):
        assert fingerprint(Virtual(1 << 40, odd)) != fingerprint(large)  # pyright: ignore
    assert fingerprint(Virtual((1 << 40) - 1)) != fingerprint(large)  # pyright: ignore


def test_a_range_costs_nothing() -> None:
    assert fingerprint(range(1 << 40)) == fingerprint(range(1 << 40)) != fingerprint(range(1, (1 << 40) + 1))


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cannot be told from another.*use descriptors of"):
        fingerprint([lambda: 1])
    deep: list[Any] = []
    deep.append(deep)
    with pytest.raises(TypeError, match="nested more than 32 deep"):
        fingerprint([deep])
