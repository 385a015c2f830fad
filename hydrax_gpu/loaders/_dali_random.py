"""Random numbers for DALI graphs: pure functions of an item's seed and of where in the graph they are drawn.

Every number comes from Philox4x32-10 (`_plan.philox`) with the key `site`, the number of the call of `sample.random` in
the order of the graph's construction, and the counter `(seed % 2**32, seed // 2**32, element, 6)`, where `element`
counts the elements of the draw in C order. Of the four words w0 .. w3 that it gives, `u = ((w0 + 2**32 w1) >> 11) /
2**53` and `v = ((w2 + 2**32 w3) >> 11) / 2**53` are uniform in [0, 1), in double precision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._plan.philox import Purpose, philox64

__all__ = ["Choice", "CoinFlip", "Draw", "Normal", "Uniform"]

F64: TypeAlias = npt.NDArray[np.float64]

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_11 = np.uint64(11)


@dataclass(frozen=True)
class Draw(ABC):
    """A call of `sample.random`: what to draw for each item.

    Attributes:
        site: number of the call, from 0.
        shape: of what is drawn for one item.
        dtype: of that.
    """

    site: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, seeds: Sequence[int]) -> npt.NDArray[Any]:
        """Draws for items with these seeds, in `[0, 2**64)` each.

        Returns:
            Array of shape `(len(seeds), *shape)`.
        """
        keys = np.array(seeds, np.uint64)[:, None]
        elements = np.arange(math.prod(self.shape), dtype=np.uint64)[None, :]
        words = philox64((keys & _LOW, keys >> _32, elements, int(Purpose.DRAW)), self.site)
        u, v = (words >> _11) * 2.0**-53
        values = self._values(u, v).astype(self.dtype, copy=False)
        return values.reshape(len(seeds), *self.shape)

    @abstractmethod
    def _values(self, u: F64, v: F64) -> npt.NDArray[Any]:
        """The values of two uniform numbers each."""


@final
@dataclass(frozen=True)
class Uniform(Draw):
    """`low + (high - low) u`, in double precision, rounded; the largest number of the dtype below `high` at most."""

    low: float
    high: float

    def _values(self, u: F64, v: F64) -> npt.NDArray[Any]:
        values = (self.low + (self.high - self.low) * u).astype(self.dtype)
        high = self.dtype.type(self.high)
        return np.minimum(values, np.nextafter(high, self.dtype.type(self.low)))


@final
@dataclass(frozen=True)
class CoinFlip(Draw):
    """1 where `u < probability`, else 0."""

    probability: float

    def _values(self, u: F64, v: F64) -> npt.NDArray[Any]:
        return u < self.probability


@final
@dataclass(frozen=True)
class Normal(Draw):
    """`mean + stddev sqrt(-2 ln(1 - u)) cos(2 pi v)`, in double precision, rounded.

    G. E. P. Box, M. E. Muller: "A note on the generation of random normal deviates", Ann. Math. Stat. 29 (1958).
    """

    mean: float
    stddev: float

    def _values(self, u: F64, v: F64) -> npt.NDArray[Any]:
        return self.mean + self.stddev * np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v)


@final
@dataclass(frozen=True, eq=False)
class Choice(Draw):
    """`values[i]` with `i = floor(n u)`, or the first `i` with `u < p[0] + ... + p[i]`."""

    values: npt.NDArray[Any]
    cumulative: F64 | None

    def _values(self, u: F64, v: F64) -> npt.NDArray[Any]:
        if self.cumulative is None:
            index = (u * len(self.values)).astype(np.int64)
        else:
            index = np.searchsorted(self.cumulative, u, side="right")
        return self.values[np.minimum(index, len(self.values) - 1)]
