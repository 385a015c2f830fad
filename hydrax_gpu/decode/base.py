"""What all decodes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hydrax_gpu._kernels.host import Library

__all__ = ["Bound", "Decode", "Kept", "Rows"]

Rows: TypeAlias = Mapping[str, npt.NDArray[Any]]
Bound: TypeAlias = Callable[[Rows, Rows], Mapping[int, str]]
"""`(rows as loaded, rows of the batch) → what is wrong, by row`; fills the latter."""


class Kept(NamedTuple):
    """An array as its declaration has it, or as the batch does: shape of an item, NumPy dtype, dtype for JAX."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    jax_dtype: np.dtype[Any]


class Decode(ABC):
    """One of the classes here."""

    @abstractmethod
    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        """The arrays of the batch that come of the declared array `name`: itself, and perhaps others after it.

        Raises:
            ValueError: they do not fit each other; the message says what was wanted.
        """

    @abstractmethod
    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        """Makes ready to decode, by the host library or by NumPy; for use on one thread."""
