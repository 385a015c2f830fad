"""The host library: whether it can be used, and how its kernels are called.

The main process decides (`choose`): it compares the library with the sources, which takes some milliseconds, logs when
NumPy has to do the work, and tells workers, which only open the library. ctypes lets go of the GIL during a call.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

__all__ = ["SWITCH", "Choice", "Entry", "Library", "choose", "load"]

_log = logging.getLogger("hydrax_gpu")

SWITCH = "HYDRAX_GPU_KERNELS"
"""Environment variable: `auto` (the default), `host` (an error if that cannot be had) or `numpy`."""

_SETTINGS = ("auto", "host", "numpy")

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

    def __init__(self, path: str | Path, level: int | None = None) -> None:
        self.path = str(path)
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


@dataclass(frozen=True, slots=True)
class Choice:
    """What does the kernels' work: the library in the file `path`, or, if that is None, NumPy, and why."""

    path: str | None
    reason: str = ""

    def __str__(self) -> str:
        return "host library" if self.path is not None else f"NumPy ({self.reason})"


@cache
def choose() -> Choice:
    """Decides, and logs once if it is NumPy for another reason than being asked for.

    Raises:
        ValueError: the environment variable has another value than those that it can have.
        RuntimeError: it asks for the library, which cannot be had.
    """
    setting = os.environ.get(SWITCH) or "auto"
    if setting not in _SETTINGS:
        raise ValueError(f"environment variable {SWITCH}: got {setting!r}, wanted one of {', '.join(_SETTINGS)}")
    if setting == "numpy":
        return Choice(None, f"{SWITCH}=numpy")
    reason = _unfit()
    if not reason:
        from hydrax_gpu._kernels.sources import LIBRARY

        return Choice(str(LIBRARY))
    advice = "with a C++ compiler, `python -m hydrax_gpu._kernels.build` builds it"
    if setting == "host":
        raise RuntimeError(f"{SWITCH}=host, but {reason}; {advice}")
    _log.warning("%s: NumPy does the kernels' work, which is slower (%s)", reason, advice)
    return Choice(None, reason)


def _unfit() -> str:
    from hydrax_gpu._kernels import sources  # workers need none of this

    if not sources.LIBRARY.exists():
        return "the kernels' host library was not built"
    try:
        library = Library(sources.LIBRARY)
    except OSError as error:
        return f"the kernels' host library cannot be opened ({error})"
    if library.digest != sources.digest():
        return "the kernels' host library was built from other sources"
    return ""


@cache
def load(path: str) -> Library:
    """The library that `choose` chose."""
    return Library(path)
