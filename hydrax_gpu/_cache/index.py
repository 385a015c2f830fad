"""Where the entry of a key is: sorted arrays, for some 16 bytes an entry and any range of keys.

A dictionary would take 200 bytes an entry in every worker process. Here entries lie in a few sorted runs; a new run is
merged with those before it that are not much larger, so that adding `n` entries one batch at a time costs
`O(n log n)` in all and a look-up searches a handful of runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["ABSENT", "Index"]

ABSENT = -1

_FACTOR = 8
_Int64s = npt.NDArray[np.int64]


class Index:
    """A mapping of int64 keys to int64 values >= 0."""

    def __init__(self) -> None:
        self._runs: list[tuple[_Int64s, _Int64s]] = []  # disjoint: a key is in one run only
        self._removed = 0
        self._addresses: npt.NDArray[np.int64] | None = None

    @property
    def runs(self) -> _Int64s:
        """The runs, for `Bulk.look`: int64, shape `(k, 3)`: addresses of keys and values, and their number."""
        if self._addresses is None:
            self._addresses = np.array(
                [(keys.ctypes.data, values.ctypes.data, len(keys)) for keys, values in self._runs], np.int64
            ).reshape(-1, 3)
        return self._addresses

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs) - self._removed

    def find(self, keys: _Int64s) -> _Int64s:
        """Value of each key, `ABSENT` where it has none."""
        values = np.full(len(keys), ABSENT, np.int64)
        for run, held in self._runs:
            places = run.searchsorted(keys)
            places[places == len(run)] = 0
            np.copyto(values, held[places], where=run[places] == keys)
        return values

    def put(self, keys: _Int64s, values: _Int64s) -> None:
        """Sets values; of keys that are given more than once, the last counts."""
        known = self._set(keys, values)
        keys, values = keys[~known], values[~known]
        if not len(keys):
            return
        # reversed, because unique takes the first
        keys, first = np.unique(keys[::-1], return_index=True)
        self._runs.append((keys, values[::-1][first].copy()))
        self._addresses = None
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= _FACTOR * len(self._runs[-1][0]):
            self._merge()

    def remove(self, keys: _Int64s) -> None:
        """Forgets keys; those it does not have are passed over."""
        keys = np.unique(keys)
        self._removed += int(np.count_nonzero(self.find(keys) != ABSENT))
        self._set(keys, np.full(len(keys), ABSENT, np.int64))

    def items(self) -> tuple[_Int64s, _Int64s]:
        """All keys, sorted, and their values."""
        while len(self._runs) > 1:
            self._merge()
        if not self._runs:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys, values = self._runs[0]
        held = values != ABSENT
        return keys[held], values[held]

    def _set(self, keys: _Int64s, values: _Int64s) -> npt.NDArray[np.bool_]:
        """Sets the values of keys that are in a run, removed or not, and tells which are."""
        known = np.zeros(len(keys), np.bool_)
        for run, held in self._runs:
            places = run.searchsorted(keys)
            places[places == len(run)] = 0
            here = run[places] == keys
            places, new = places[here], values[here]
            if len(places) and new[0] != ABSENT:
                self._removed -= int(np.count_nonzero(held[np.unique(places)] == ABSENT))
            held[places] = new
            known |= here
        return known

    def _merge(self) -> None:
        (old_keys, old_values), (new_keys, new_values) = self._runs[-2:]
        self._addresses = None
        keys = np.concatenate([old_keys, new_keys])
        # both are sorted, and timsort merges them
        order = keys.argsort(kind="stable")
        self._runs[-2:] = [(keys[order], np.concatenate([old_values, new_values])[order])]
