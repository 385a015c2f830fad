"""The host library and how its kernels are called. ctypes lets go of the GIL during a call.

Workers import this, and should not pay for more: whether there is a library to use is decided in `choice`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

__all__ = ["Entry", "Library", "load"]

Entry: TypeAlias = "Callable[[ctypes.Structure], None]"
"""A kernel: it is called with its arguments' structure."""


class Library:
    """An opened host library.

    Args:
        path: the file.
        level: which variant of the kernels to use, instead of the best that the processor can run.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, level: int | None = None) -> None:
        self.path = path
        self._library = ctypes.CDLL(self.path)
        self._library.hx_digest.restype = ctypes.c_char_p
        self.level: int = self._library.hx_level() if level is None else level
        self._entries: dict[str, Entry] = {}

    @property
    def digest(self) -> str:
        """Of the sources it was built from."""
        return self._library.hx_digest().decode()

    def entry(self, name: str) -> Entry:
        """The kernel with that name.

        Raises:
            AttributeError: the library has none.
        """
        entry = self._entries.get(name)
        if entry is None:
            function = self._library[f"v{self.level}_{name}"]
            function.restype = None

            def call(arguments: ctypes.Structure) -> None:
                function(ctypes.byref(arguments))

            entry = self._entries[name] = call
        return entry


@cache
def load(path: str) -> Library:
    """The library that `choose` chose."""
    return Library(path)
