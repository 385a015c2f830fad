"""Checks of arguments and declarations, whose messages begin with what they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat, cast

import numpy as np

from hydrax_gpu.decode.base import Kept

__all__ = ["array_name", "companion", "dtype_in", "number", "numbers"]


def companion(what: str, other: str, name: str, declared: Mapping[str, Kept]) -> Kept:
    """The declaration of another array than `name`, which a decode needs beside it."""
    if other == name or other not in declared:
        others = [each for each in declared if each != name]
        raise ValueError(
            f"{what}: got {other!r}, wanted another declared array: {', '.join(others) or 'there is none'}"
        )
    return declared[other]


def dtype_in(decode: str, what: str, dtype: np.dtype[Any], allowed: Sequence[str]) -> None:
    """Refuses a dtype that a decode has no kernel for."""
    if dtype.name not in allowed:
        raise ValueError(f"{decode}: got {what} {dtype.name}, wanted {' or '.join(allowed)}")


def array_name(what: str, value: object) -> None:
    """Refuses what cannot be the name of an array."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{what}: got {value!r}, wanted the name of an array")


def number(what: str, value: object) -> float:
    """A number as a float."""
    try:
        return float(cast("SupportsFloat", value))
    except (TypeError, ValueError):
        raise TypeError(f"{what}: got {value!r}, wanted a number") from None


def numbers(what: str, value: object) -> float | tuple[float, ...]:
    """A number as it is, anything else as a tuple of numbers, so that the whole can be hashed and compared."""
    if isinstance(value, str) or not hasattr(value, "__iter__") or getattr(value, "shape", None) == ():
        return number(what, value)
    result = tuple(number(what, each) for each in cast("Sequence[Any]", value))
    if not result:
        raise ValueError(f"{what}: got no number")
    return result
