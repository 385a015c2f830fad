"""Progress on stderr: a bar where tqdm is installed and somebody watches, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]

_INTERVAL = 5.0  # seconds between lines


class Progress:
    """Counts entries.

    Args:
        what: is being done.
        total: number of entries.
        quiet: whether to show nothing.
    """

    def __init__(self, what: str, total: int, *, quiet: bool) -> None:
        self._what = what
        self._total = total
        self._quiet = quiet
        self._done = 0
        self._shown = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self._bar = tqdm(total=self._total, desc=self._what, unit=" entries", file=sys.stderr)
        return self

    def __call__(self, count: int) -> None:
        """`count` more entries are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._shown >= _INTERVAL:
            self._shown = time.monotonic()
            sys.stderr.write(f"{self._what}: {self._done:,} of {self._total:,} entries\n")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
