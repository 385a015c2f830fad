"""What does the kernels' work: the host library, or NumPy. The main process decides, and tells its workers.

It compares the library with the sources, which takes some milliseconds, and logs when NumPy has to do the work.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache

from hydrax_gpu._kernels import sources
from hydrax_gpu._kernels.host import Library

__all__ = ["SWITCH", "Choice", "choose"]

_log = logging.getLogger("hydrax_gpu")

SWITCH = "HYDRAX_GPU_KERNELS"
"""Environment variable: `auto` (the default), `host` (an error if that cannot be had) or `numpy`."""

_SETTINGS = ("auto", "host", "numpy")


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
        return Choice(str(sources.LIBRARY))
    advice = "with a C++ compiler, `python -m hydrax_gpu._kernels.build` builds it"
    if setting == "host":
        raise RuntimeError(f"{SWITCH}=host, but {reason}; {advice}")
    _log.warning("%s: NumPy does the kernels' work, which is slower (%s)", reason, advice)
    return Choice(None, reason)


def _unfit() -> str:
    if not sources.LIBRARY.exists():
        return "the kernels' host library was not built"
    try:
        library = Library(str(sources.LIBRARY))
    except OSError as error:
        return f"the kernels' host library cannot be opened ({error})"
    if library.digest != sources.digest():
        return "the kernels' host library was built from other sources"
    return ""
