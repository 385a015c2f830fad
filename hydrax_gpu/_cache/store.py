"""The store: entries of a cache, written once by any number of processes and verified whenever they are read.

Every writer has files of its own and nobody else's is ever written to, so that nothing depends on locks; see `journal`
for what makes an entry exist, `claims` for how two writers do not write the same one, and `docs/cache.md` for what can
go wrong.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import checksums, trust, values
from hydrax_gpu._cache.bulk import EXTRAS, MISSING, SEVERAL, Found, bulk
from hydrax_gpu._cache.compression import compressor
from hydrax_gpu._cache.descriptor import Descriptor
from hydrax_gpu._cache.directory import open_directory
from hydrax_gpu._cache.entries import Entries
from hydrax_gpu._cache.files import Files
from hydrax_gpu._cache.index import ABSENT
from hydrax_gpu._cache.journal import EXTRA_SIZE, FLAG_EXTRA, FLAG_PICKLED, RowFormat
from hydrax_gpu._cache.keys import Keys, pack
from hydrax_gpu._cache.process import current
from hydrax_gpu._cache.reading import Reader, address_of, as_bytes
from hydrax_gpu._cache.sizes import ratio, stored_nbytes
from hydrax_gpu._cache.system import System
from hydrax_gpu._cache.table import Table
from hydrax_gpu._cache.writer import Writer, joined, new_name, rows_of
from hydrax_gpu.errors import CacheWriteError

__all__ = ["ReadResult", "Stats", "Store", "StoreSpec"]

_PATIENCE = 2.0  # seconds to wait for another writer that is about to write the same entries
_PAUSE = 0.0005

_Bools = npt.NDArray[np.bool_]
_Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoreSpec:
    """What a process needs to open a store.

    Attributes:
        location: directory of the cache.
        descriptor: what the cache must be of.
        readonly: whether nothing is ever written there.
        kernels: the kernels' host library, with which many records are read and checked at once; None to do without.
    """

    location: str
    descriptor: Descriptor
    readonly: bool = False
    kernels: str | None = None


class ReadResult(NamedTuple):
    """What became of a read.

    Attributes:
        bad: `(offset, reason)` of each key whose entry is missing or not good, by offset; its rows hold nothing of use.
        additional: for each key its additional data; None where there is none.
        nbytes: bytes read.
        read_calls: calls of the operating system that read them.
    """

    bad: list[tuple[int, str]]
    additional: list[dict[str, Any] | None]
    nbytes: int
    read_calls: int


@dataclass
class Stats:
    """What a store has done since it was opened.

    Attributes:
        entries_read: entries read and found good.
        entries_written: entries written by this store.
        entries_skipped: entries not written because others had written, or were writing, them.
        bytes_read: bytes.
        bytes_written: bytes.
        bad: entries found missing or not good when they were read.
        damaged_rows: rows of journals that are not good.
        waits: how often another writer was waited for.
    """

    entries_read: int = 0
    entries_written: int = 0
    entries_skipped: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bad: int = 0
    damaged_rows: int = 0
    waits: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])


class Store:
    """A cache on disk. All methods may be called from any thread.

    Attributes:
        spec: it was opened with.
        disabled: why nothing is written any more; None while writing works, or has not been tried.
        read_path: how records get into memory: "posix", by reads.
        read_path_reason: why not by GPUDirect Storage.
    """

    read_path = "posix"
    read_path_reason = "reading by GPUDirect Storage (kvikio) is not implemented"

    def __init__(self, spec: StoreSpec, *, writer: bool = True, system: System | None = None) -> None:
        self.spec = spec
        self.disabled: str | None = None
        self._system = system or System()
        self._digest = checksums.digest()
        self._bulk = bulk(spec.kernels)
        self._arrays = spec.descriptor.arrays
        self._compressors = [
            compressor(array.packed) if array.packed and array.nbytes else None for array in self._arrays
        ]
        self._format = RowFormat(self._arrays)
        self._may_write = writer and not spec.readonly
        open_directory(spec, self._system)
        self._files = Files(spec.location, self._system)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._writer: Writer | None = None
        self._here = current()
        self._stats = Stats()
        self._table = Table(spec.location, spec.descriptor, self._format, self._system)
        self.refresh()

    @classmethod
    def open(cls, spec: StoreSpec, *, writer: bool = True, system: System | None = None) -> Store:
        """Opens a cache, and makes it if it is not there.

        Args:
            spec: where and of what it is.
            writer: whether `write` will be called. A file is made only when it is.
            system: other calls of the operating system, for tests.

        Raises:
            CacheMismatch: the cache there is of something else.
            CacheError: it cannot be opened: it is to be read only and is not there, a directory cannot be made, its
                description is damaged, a package is missing.
        """
        return cls(spec, writer=writer, system=system)

    def __len__(self) -> int:
        """Number of entries."""
        with self._lock:
            return len(self._table)

    @property
    def complete(self) -> bool:
        """Whether every item has an entry, as far as is known, so that `contains` need not be asked of any.

        Never where entries are one an item and pass, as there is no end of those.
        """
        descriptor = self.spec.descriptor
        if descriptor.seeded != "item":
            return False
        with self._lock:
            return len(self._table) == descriptor.length

    @property
    def unreadable(self) -> str:
        """Which journals could not be read at the last `refresh`, and why; "" when all could. Their entries count as
        missing."""
        with self._lock:
            return self._table.unreadable

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        with self._lock:
            return replace(self._stats, reasons=dict(self._stats.reasons))

    def compression_ratio(self) -> float | None:
        """Bytes of all entries' arrays, uncompressed, for each byte of theirs on disk; None where there are none."""
        if any(array.packed for array in self._arrays):
            with contextlib.suppress(OSError):  # what others have written counts too
                self.refresh()
        with self._lock:
            return ratio(self._arrays, stored_nbytes(self._arrays, self._format, self._table), len(self._table))

    def contains(self, keys: Keys) -> _Bools:
        """Which of the keys have an entry, as far as is known since the last `refresh`: bool, shape `(n,)`."""
        packed = self._pack(keys)
        with self._lock:
            return self._table.find(packed) != ABSENT

    def refresh(self) -> int:
        """Learns what others have written, and returns the number of entries that are new."""
        with self._lock:
            return self._refresh()

    def read(self, keys: Keys, views: Mapping[str, npt.NDArray[Any]]) -> ReadResult:
        """Reads entries.

        Args:
            keys: of `n` entries; the same key may be there several times.
            views: for each array, by its name, a C-contiguous NumPy array of `n` rows, which are filled. Rows of keys
                that are not good may have been written to.

        Raises:
            UnsafeCache: an entry has pickled values in a file that others may have written. Nothing is unpickled.
            ValueError: a view does not fit.
        """
        found = self._look(keys)
        count, whole = len(found.keys), not found.flags & MISSING
        memories = [self._memory(array.name, array.nbytes, views, count) for array in self._arrays]
        reader = Reader(self._files, self._system, self._digest, self._bulk)
        bad: dict[int, str] = {}
        if not whole:
            bad = dict.fromkeys(np.flatnonzero(found.places == ABSENT).tolist(), "it is missing")
        additional: list[dict[str, Any] | None] = [None] * count
        for number, offsets in _by_writer(found):
            name = self._table.name(number)
            if offsets is None:
                entries = Entries(self._arrays, self._format, reader, name, found.keys, found.rows)
            else:
                picked, rows = found.keys[offsets], found.rows[offsets]
                entries = Entries(self._arrays, self._format, reader, name, picked, rows)

            def failed(entry: int, reason: str, offsets: _Int64s | None = offsets) -> None:
                bad.setdefault(entry if offsets is None else int(offsets[entry]), reason)

            if found.flags & EXTRAS:  # first, because it may refuse
                for entry, content in self._additional(entries, failed):
                    additional[entry if offsets is None else int(offsets[entry])] = content
            for position, memory in enumerate(memories):
                entries.read_rows(position, offsets, memory, failed)
        with self._lock:
            self._note_read(found, bad, reader)
        for offset in bad:
            additional[offset] = None
        return ReadResult(sorted(bad.items()), additional, reader.nbytes, reader.calls)

    def write(
        self,
        keys: Keys,
        arrays: Mapping[str, npt.NDArray[Any]],
        additional: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> int:
        """Writes the entries that are not there yet, each as a whole.

        Args:
            keys: of `n` entries; of several with the same key, the first counts.
            arrays: for each array, by its name, a C-contiguous NumPy array of `n` rows. They must not change meanwhile.
            additional: for each entry its additional data or None.

        Returns:
            The number of entries written. Others were there, or others are just writing them; or `disabled` says why
            nothing is written any more.

        Raises:
            CacheWriteError: nothing can be written any more; `disabled` is set, and later calls return 0.
            UnsafeCache: additional data would have to be pickled, and nobody could read it: see `read`.
            TypeError: additional data can be neither written nor pickled.
            ValueError: an array does not fit.
        """
        packed = self._pack(keys)
        memories = [self._memory(array.name, array.nbytes, arrays, len(packed)) for array in self._arrays]
        if additional is not None and len(additional) != len(packed):
            raise ValueError(f"additional data for each of {len(packed)} entries is needed, got {len(additional)}.")
        with self._writing:
            if self.disabled is not None:
                return 0
            if not self._may_write:
                return self._give_up("it was opened for reading only", None)
            self.refresh()
            picked = self._absent(packed, np.unique(packed, return_index=True)[1])
            blobs = [self._blob(additional, int(row)) for row in picked]
            try:
                written = self._write(packed, picked, memories, blobs)
            except OSError as error:
                return self._give_up(error.strerror or str(error), error)
            with self._lock:
                self._stats.entries_written += written
                self._stats.entries_skipped += len(packed) - written
            return written

    def close(self) -> None:
        """Closes all files. Idempotent."""
        with self._writing:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        self._files.close()

    def _pack(self, keys: Keys) -> _Int64s:
        packed = pack(keys)
        descriptor = self.spec.descriptor
        if len(packed) and int(keys.items.max()) >= descriptor.length:
            raise ValueError(f"the cache is of {descriptor.length} items, got item {keys.items.max()}.")
        if descriptor.seeded == "item" and np.any(keys.passes):
            raise ValueError("the cache has one entry an item, so passes must be 0.")
        return packed

    def _look(self, keys: Keys) -> Found:
        items, passes = np.ascontiguousarray(keys.items, np.int64), np.ascontiguousarray(keys.passes, np.int64)
        if self._bulk is not None and items.shape == passes.shape and items.ndim == 1:
            with self._lock:
                found = self._table.look(self._bulk, items, passes, self.spec.descriptor.seeded == "item")
            if found is not None:
                return found
        packed = self._pack(keys)  # which says what is wrong, if that is why
        with self._lock:
            return self._table.found(packed)

    def _memory(self, name: str, nbytes: int, views: Mapping[str, npt.NDArray[Any]], count: int) -> memoryview:
        if name not in views or len(views[name]) != count:
            got = f"{len(views[name])} rows" if name in views else f"only {sorted(views)}"
            raise ValueError(f"array {name!r} with {count} rows is needed, got {got}.")
        return as_bytes(views[name], nbytes, name)

    def _refresh(self) -> int:
        new = self._table.refresh(self._here)
        self._stats.damaged_rows = self._table.damaged
        return new

    def _additional(self, entries: Entries, failed: Callable[[int, str], None]) -> Iterator[tuple[int, dict[str, Any]]]:
        def status(found: os.stat_result) -> None:
            if entries.pickled:
                trust.require_own(self.spec.location, os.path.join(self.spec.location, entries.extra_file), found)

        for entry, blob, pickled in entries.extras(failed, status):
            try:
                content = values.decode(blob, unpickle=pickled)
            except ValueError as error:
                failed(entry, f"additional data: {error}")
            else:
                yield entry, content

    def _note_read(self, found: Found, bad: dict[int, str], reader: Reader) -> None:
        stats = self._stats
        stats.entries_read += len(found.keys) - len(bad)
        stats.bytes_read += reader.nbytes
        if not bad:
            return
        stats.bad += len(bad)
        for reason in bad.values():
            stats.reasons[reason] = stats.reasons.get(reason, 0) + 1
        if damaged := [offset for offset in bad if found.places[offset] != ABSENT]:
            self._table.forget(found.keys[damaged], found.places[damaged])

    def _absent(self, packed: _Int64s, picked: npt.NDArray[Any]) -> _Int64s:
        picked = np.sort(picked)
        with self._lock:
            return picked[self._table.find(packed[picked]) == ABSENT]

    def _blob(self, additional: Sequence[Mapping[str, Any] | None] | None, row: int) -> tuple[bytes, int]:
        content = None if additional is None else additional[row]
        if content is None:
            return b"", 0
        blob, pickled = values.encode(content)
        if len(blob) > EXTRA_SIZE:
            raise ValueError(f"additional data of an entry has {len(blob):,} bytes, and may have {EXTRA_SIZE:,}.")
        if pickled:
            # our own file is ours, but not its directory
            trust.require_own(self.spec.location, self.spec.location, os.stat(self.spec.location))
        return blob, FLAG_EXTRA | (FLAG_PICKLED if pickled else 0)

    def _write(
        self, packed: _Int64s, picked: _Int64s, memories: list[memoryview], blobs: list[tuple[bytes, int]]
    ) -> int:
        if not len(picked):
            return 0
        writer = self._own_writer()
        left = self._claim(writer, packed, picked)
        try:
            if len(left):
                chosen = np.searchsorted(picked, left)
                self._append(writer, packed[left], left, memories, [blobs[int(each)] for each in chosen])
        finally:
            writer.claim(np.empty(0, np.int64))
        return len(left)

    def _own_writer(self) -> Writer:
        here = current()
        if self._writer is not None and here != self._here:
            # a fork: the files are the parent's
            self._writer = None
        self._here = here
        if self._writer is None:
            name = new_name()
            self._writer = Writer(self.spec.location, name, self.spec.descriptor, here, self._system)
            with self._lock:
                self._table.add_own(name)
        return self._writer

    def _claim(self, writer: Writer, packed: _Int64s, picked: _Int64s) -> _Int64s:
        """Rows that are ours to write."""
        writer.claim(packed[picked])
        give_up = self._system.clock() + _PATIENCE
        while True:
            with self._lock:
                # what is claimed is looked at before what is written: who has written lets go after it
                taken = self._table.claimed(self._here, packed[picked])
                self._refresh()
            contested = np.zeros(len(picked), np.bool_)
            lost = np.zeros(len(picked), np.bool_)
            for name, keys in taken:
                if name < writer.name:
                    lost |= keys
                else:
                    contested |= keys
            with self._lock:
                lost |= self._table.find(packed[picked]) != ABSENT
            waiting = bool((contested & ~lost).any())
            if waiting and self._system.clock() >= give_up:
                lost |= contested
                waiting = False
            if lost.any():
                picked = picked[~lost]
                writer.claim(packed[picked])
            if not waiting:
                return picked
            with self._lock:
                self._stats.waits += 1
            self._system.pause(_PAUSE)

    def _append(
        self, writer: Writer, keys: _Int64s, picked: _Int64s, memories: list[memoryview], blobs: list[tuple[bytes, int]]
    ) -> None:
        rows = np.zeros((len(keys), self._format.width), np.uint64)
        with self._lock:
            generation = self._table.next_generations(keys)
        flags = np.array([flag for _, flag in blobs], np.uint64)
        lengths = np.array([len(blob) for blob, _ in blobs], np.uint64)
        rows[:, RowFormat.HEAD] = generation << np.uint64(48) | flags << np.uint64(32) | lengths
        rows[:, RowFormat.KEY] = keys
        extras = [blob for blob, _ in blobs]
        if flags.any():
            rows[:, RowFormat.EXTRA_SUM] = self._sums(keys, checksums.EXTRA, extras)
        records: list[Sequence[Any]] = []
        for position, array in enumerate(self._arrays):
            shrink, memory, nbytes = self._compressors[position], memories[position], array.nbytes
            if self._bulk is not None and shrink is None:
                sums = self._bulk.sums(address_of(memory), nbytes, picked, checksums.seeds(keys, position))
                buffers = joined(memory, nbytes, picked)
            else:
                buffers = list(rows_of(memory, nbytes, picked, shrink))
                sums = self._sums(keys, position, buffers)
                if shrink is None:
                    buffers = joined(memory, nbytes, picked)
            rows[:, RowFormat.SUMS + position] = sums
            records.append(buffers)
        before = writer.written
        writer.append(rows, records, extras)
        with self._lock:
            self._stats.bytes_written += writer.written - before
            self._table.put_own(rows)

    def _sums(self, keys: _Int64s, what: int, buffers: Iterable[Any]) -> npt.NDArray[np.uint64]:
        seeds = checksums.seeds(keys, what).tolist()
        return np.array(
            [self._digest(buffer, seed) for buffer, seed in zip(buffers, seeds, strict=True)], dtype=np.uint64
        )

    def _give_up(self, reason: str, error: OSError | None) -> int:
        self.disabled = reason
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        raise CacheWriteError(
            f"nothing more is written to the cache in {self.spec.location}: {reason}. What is there stays good. Make "
            "room or give permission and start again, or use cache_readonly=True.",
            error.errno if error else None,
        ) from error


def _by_writer(found: Found) -> list[tuple[int, _Int64s | None]]:
    """The writers of entries, by their numbers, and the offsets of theirs; None for all of them."""
    numbers = found.rows[:, RowFormat.KEY]
    if not found.flags & (MISSING | SEVERAL):
        return [(int(numbers[0]), None)] if len(numbers) else []
    there = np.flatnonzero(found.places != ABSENT)
    numbers = numbers[there]
    return [(number, there[numbers == number]) for number in np.unique(numbers).tolist()]
