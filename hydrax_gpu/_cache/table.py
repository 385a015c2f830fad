"""All entries of a cache that are known, and whose they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.bulk import EXTRAS, MISSING, PICKLED, SEVERAL, Bulk, Found
from hydrax_gpu._cache.descriptor import Descriptor
from hydrax_gpu._cache.index import ABSENT, Index
from hydrax_gpu._cache.journal import FLAG_EXTRA, FLAG_PICKLED, RowFormat, Words, generations
from hydrax_gpu._cache.peers import JOURNAL, Peer
from hydrax_gpu._cache.process import Process
from hydrax_gpu._cache.system import System

__all__ = ["Table"]

_Int64s = npt.NDArray[np.int64]
_MAX_GENERATION = (1 << 16) - 1


class Table:
    """Entries by key. Of several entries of a key, the one of the highest generation counts, and of those the one whose
    writer's name is the smallest: every reader comes to the same, whatever it sees first.

    Rows are kept as in the journal, but for the key's word, which holds the writer's number, and the last one.
    """

    def __init__(self, location: str, descriptor: Descriptor, format: RowFormat, system: System) -> None:
        self.peers: dict[str, Peer] = {}
        self.seen = 0  # good rows of all journals; those of replaced entries are among them
        self._own = ""
        self._names: list[str] = []
        self._location = location
        self._descriptor = descriptor
        self._format = format
        self._system = system
        self._index = Index()
        self._rows = np.empty((0, format.width - 1), np.uint64)
        self._count = 0
        self._generations: dict[int, int] = {}  # of entries that were bad

    def __len__(self) -> int:
        return len(self._index)

    @property
    def damaged(self) -> int:
        """Rows of journals that are not good, and will not be."""
        return sum(peer.damaged + (peer.trailing if peer.ended else 0) for peer in self.peers.values())

    @property
    def unreadable(self) -> str:
        """Which journals the operating system refuses to read, and why; "" when there are none."""
        refused = [(peer.name, peer.error) for peer in self.peers.values() if peer.error is not None]
        if not refused:
            return ""
        name, error = min(refused, key=lambda each: each[0])
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        return f"{name}{JOURNAL}{more}: {error.strerror or error}"

    def name(self, number: int) -> str:
        """Name of a writer."""
        return self._names[number]

    def find(self, keys: _Int64s) -> _Int64s:
        """For each key the place of its row, or `ABSENT`."""
        return self._index.find(keys)

    def rows(self, places: _Int64s) -> Words:
        """Rows at places: a copy."""
        return self._rows[places]

    def look(self, bulk: Bulk, items: _Int64s, passes: _Int64s, by_item: bool) -> Found | None:
        """Keys looked up in one call; None when one is not a key of the cache."""
        return bulk.look(items, passes, self._descriptor.length, by_item, self._index.runs, self._rows)

    def found(self, keys: _Int64s) -> Found:
        """What `look` finds, of packed keys."""
        places = self.find(keys)
        there = places != ABSENT
        rows = np.zeros((len(keys), self._rows.shape[1]), np.uint64)
        rows[there] = some = self._rows[places[there]]
        numbers, flags = some[:, RowFormat.KEY], some[:, RowFormat.HEAD] >> np.uint64(32)
        told = {
            MISSING: not there.all(),
            SEVERAL: len(some) and (numbers != numbers[0]).any(),
            EXTRAS: (flags & np.uint64(FLAG_EXTRA)).any(),
            PICKLED: (flags & np.uint64(FLAG_PICKLED)).any(),
        }
        return Found(keys, places, rows, sum(flag for flag, true in told.items() if true))

    def sum(self, word: int) -> int:
        """Sum of a word of all entries' rows."""
        return int(self._rows[self._index.items()[1], word].sum())

    def items(self) -> tuple[_Int64s, _Int64s]:
        """All keys, sorted, and the places of their rows."""
        return self._index.items()

    def forget(self, keys: _Int64s, places: _Int64s) -> None:
        """Takes out entries that were found bad, unless there are others in their place by now."""
        here = self._index.find(keys) == places
        keys, places = keys[here], places[here]
        for key, generation in zip(keys.tolist(), generations(self._rows[places]).tolist(), strict=True):
            self._generations[key] = generation + 1
        self._index.remove(keys)

    def next_generations(self, keys: _Int64s) -> npt.NDArray[np.uint64]:
        """Generation that a new entry of each key has."""
        return np.array([min(self._generations.get(key, 0), _MAX_GENERATION) for key in keys.tolist()], np.uint64)

    def add_own(self, name: str) -> None:
        """This process writes under that name, and will tell what."""
        self._own = name
        self._peer(name)

    def put_own(self, rows: Words) -> None:
        """Adds entries that this process has written."""
        self._learn(self.peers[self._own], rows)

    def refresh(self, here: Process) -> int:
        """Reads what is new in the journals of others, and returns the number of keys that are new."""
        before = len(self._index)
        for file in sorted(self._system.names(self._location)):
            name = file.removesuffix(JOURNAL)
            if name != file and name != self._own and is_writer(name):
                peer = self._peer(name)
                self._learn(peer, peer.poll(self._system, here))
        return len(self._index) - before

    def claimed(self, here: Process, keys: _Int64s) -> list[tuple[str, npt.NDArray[np.bool_]]]:
        """Writers that are about to write some of the keys, and which."""
        # writers that have come since the last refresh count too
        for file in self._system.names(self._location):
            name = file.removesuffix(JOURNAL)
            if name != file and is_writer(name) and name not in self.peers:
                self._learn(self._peer(name), self._peer(name).poll(self._system, here))
        found = [
            (name, peer.claimed(self._system, here, keys)) for name, peer in self.peers.items() if name != self._own
        ]
        return [(name, taken) for name, taken in found if taken.any()]

    def _peer(self, name: str) -> Peer:
        if name not in self.peers:
            self.peers[name] = Peer(self._location, name, len(self._names), self._descriptor, self._format)
            self._names.append(name)
        return self.peers[name]

    def _learn(self, peer: Peer, rows: Words) -> None:
        if not len(rows):
            return
        self.seen += len(rows)
        keys = rows[:, RowFormat.KEY].astype(np.int64)
        generation = generations(rows)
        known = self._index.find(keys)
        better = known == ABSENT
        for row in np.flatnonzero(~better).tolist():
            held = self._rows[known[row]]
            other = int(held[RowFormat.HEAD] >> np.uint64(48)), self._names[int(held[RowFormat.KEY])]
            better[row] = generation[row] > other[0] or (generation[row] == other[0] and peer.name < other[1])
        if self._generations:
            for row in np.flatnonzero(better).tolist():
                better[row] = generation[row] >= self._generations.get(int(keys[row]), 0)
        if not better.any():
            return
        keys, rows = keys[better], rows[better]
        end = self._count + len(rows)
        if end > len(self._rows):
            grown = np.empty((max(end, 2 * len(self._rows)), self._rows.shape[1]), np.uint64)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : end] = rows[:, :-1]
        self._rows[self._count : end, RowFormat.KEY] = peer.number
        self._index.put(keys, np.arange(self._count, end, dtype=np.int64))
        self._count = end


def is_writer(name: str) -> bool:
    """Whether a name is one that `new_name` makes."""
    return len(name) == 16 and all(digit in "0123456789abcdef" for digit in name)
