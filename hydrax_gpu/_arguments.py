"""Checks of users' arguments that more than one public module makes."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np

__all__ = ["at_least", "choice", "integer"]

T = TypeVar("T")


def integer(name: str, value: Any) -> int:
    """`value` as an int.

    Raises:
        TypeError: it is not an integer (NumPy's are; True is not).
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: got {value!r}, wanted an integer")
    return int(cast("int", value))


def at_least(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is smaller.
    """
    number = integer(name, value)
    if number < least:
        raise ValueError(f"{name}: got {number}, wanted at least {least}")
    return number


def choice(name: str, value: T, choices: tuple[T, ...]) -> T:
    """`value`, one of `choices`.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, choices))}")
    return value
