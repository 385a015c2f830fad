"""Looking after a cache as it is on disk, whatever it is of: verify, repair, copy.

Entries are read and written as they are stored, but for those that are copied to another form. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import checksums
from hydrax_gpu._cache.claims import STALE
from hydrax_gpu._cache.conversion import Converter, converted, converters
from hydrax_gpu._cache.descriptor import FILE, Descriptor
from hydrax_gpu._cache.directory import read_descriptor, write_descriptor
from hydrax_gpu._cache.entries import Entries
from hydrax_gpu._cache.files import Files
from hydrax_gpu._cache.journal import Head, RowFormat, Words, unpack_head
from hydrax_gpu._cache.keys import unpack
from hydrax_gpu._cache.peers import CLAIM, EXTRA, JOURNAL, Peer, data_file
from hydrax_gpu._cache.process import alive, current
from hydrax_gpu._cache.reading import Reader
from hydrax_gpu._cache.sizes import ratio, stored_nbytes
from hydrax_gpu._cache.system import System
from hydrax_gpu._cache.table import Table, is_writer
from hydrax_gpu._cache.writer import Writer, new_name
from hydrax_gpu._kernels.choice import choose
from hydrax_gpu._kernels.host import load
from hydrax_gpu.errors import CacheError

__all__ = ["Bad", "Cache", "Outcome", "restore_descriptor"]

_PART = 8 << 20  # bytes of entries at a time

Progress = Callable[[int], None]
"""Called with the number of entries that are done with since the call before."""


class Bad(NamedTuple):
    """An entry that is not good: its item, the pass, the name of its writer, and why."""

    item: int
    pass_: int
    writer: str
    reason: str


@dataclass
class Outcome:
    """What was found.

    Attributes:
        entries: good ones.
        nbytes: bytes read of them.
        bad: entries that are not good.
        damaged: damage that is no entry's: rows of journals that cannot be read, and journals.
    """

    entries: int = 0
    nbytes: int = 0
    bad: list[Bad] = field(default_factory=list[Bad])
    damaged: list[str] = field(default_factory=list[str])

    @property
    def good(self) -> bool:
        """Whether nothing is damaged."""
        return not self.bad and not self.damaged


class _Part(NamedTuple):
    keys: npt.NDArray[np.int64]
    rows: Words
    records: list[list[memoryview]]
    extras: list[bytes]


class Cache:
    """A cache on disk, opened for what its own description says.

    Args:
        location: its directory.
        system: other calls of the operating system, for tests.

    Raises:
        CacheError: it has no description that can be read.
    """

    def __init__(self, location: str, system: System | None = None) -> None:
        self.location = location
        self._system = system or System()
        self._here = current()
        try:
            self.descriptor: Descriptor = read_descriptor(location, self._system)
        except OSError as error:
            raise CacheError(
                f"there is no cache in {location}: {error.strerror or error}. Name the directory that is a "
                "DataGroup's cache_location."
            ) from error
        self._format = RowFormat(self.descriptor.arrays)
        self._table = Table(location, self.descriptor, self._format, self._system)
        self._table.refresh(self._here)

    def __len__(self) -> int:
        """Number of entries, good or not."""
        return len(self._table)

    @property
    def writers(self) -> Sequence[Peer]:
        """All there have been."""
        return list(self._table.peers.values())

    @property
    def replaced(self) -> int:
        """Entries that others have taken the place of."""
        return self._table.seen - len(self._table)

    @property
    def running(self) -> list[str]:
        """Writers that may still be at work, in words."""
        return self._running("")

    def _running(self, own: str) -> list[str]:
        found: list[str] = []
        for peer in self.writers:
            if peer.head is None or peer.name == own:
                continue
            running = alive(peer.head.process, self._here)
            if running is None:
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(self.location, peer.name + CLAIM))
                    running = time.time() - status.st_mtime < STALE
            if running:
                found.append(f"process {peer.head.process.pid} on {peer.head.host}")
        return found

    def files(self) -> dict[str, int]:
        """Names and sizes of the cache's files."""
        sizes: dict[str, int] = {}
        for name in sorted(self._system.names(self.location)):
            with contextlib.suppress(OSError):
                sizes[name] = os.lstat(os.path.join(self.location, name)).st_size
        return sizes

    @property
    def stored_nbytes(self) -> list[int]:
        """Bytes on disk of each array of all entries."""
        return stored_nbytes(self.descriptor.arrays, self._format, self._table)

    @property
    def compression_ratio(self) -> float | None:
        """Bytes of all entries' arrays, uncompressed, for each byte of theirs on disk; None where there are none."""
        return ratio(self.descriptor.arrays, self.stored_nbytes, len(self))

    def verify(self, progress: Progress = lambda _: None) -> Outcome:
        """Reads everything."""
        outcome = self._outcome()
        for _ in self._parts(outcome, progress):
            pass
        return outcome

    def repair(self, progress: Progress = lambda _: None) -> Outcome:
        """Writes all good entries anew, as one writer, and removes all other writers' files.

        At no time is a good entry not on disk: a writer's files are removed when all of theirs are written.

        Raises:
            CacheError: somebody may be writing.
            OSError: the disk is full, or permission is missing. What was there is still there.
        """
        self._refuse_repair()
        files = [name for name in self.files() if _is_ours(name)]
        outcome = self._outcome()
        writer = Writer(self.location, new_name(), self.descriptor, self._here, self._system)
        try:
            # again, now that others can see this one: of two that come at once, at least one sees the other
            self._table.add_own(writer.name)
            self._table.refresh(self._here)
            self._refuse_repair(writer.name)
            before = ""
            for name, part in self._parts(outcome, progress, sure=True):
                if name != before and before:
                    writer.sync()
                    self._remove(before)
                before = name
                _append(writer, part)
            writer.sync()
        except BaseException:
            # nothing is lost by leaving it: what it has, others have or had
            writer.close()
            raise
        writer.close()
        # journals first, so that no entry is left without its data; and not what has come meanwhile
        for name in sorted(files, key=lambda name: not name.endswith(JOURNAL)):
            self._remove_file(name)
        return outcome

    def _refuse_repair(self, own: str = "") -> None:
        if running := self._running(own):
            raise CacheError(f"the cache in {self.location} is in use by {', '.join(running)}. Wait for the end of it.")
        for peer in self.writers:
            if peer.error is not None:
                raise CacheError(
                    f"{peer.name}{JOURNAL} cannot be read ({peer.error.strerror}), and what it speaks of would be "
                    "lost. Give permission, or remove that file."
                )

    def copy(
        self, target: str, progress: Progress = lambda _: None, forms: Mapping[str, str | None] | None = None
    ) -> Outcome:
        """Writes all good entries to another directory, which must be empty or not there.

        Args:
            target: the directory.
            progress: see `Progress`.
            forms: in which form arrays are to be kept there, see `conversion.converted`; by default as they are here.

        Raises:
            CacheError: it is not empty, or there is no such form of that array.
            OSError: it cannot be written.
        """
        outcome = self._outcome()
        form = self._another_form(forms or {})
        self._system.make_directory(target)
        if self._system.names(target):
            raise CacheError(f"{target} is not empty. Name a directory that is, or that is not there.")
        descriptor = self.descriptor if form is None else form.descriptor
        writer = Writer(target, new_name(), descriptor, self._here, self._system)
        try:
            for name, part in self._parts(outcome, progress):
                _append(writer, part if form is None else form.of(part, name, outcome))
            writer.sync()
        finally:
            writer.close()
        # last: what has no description is no cache, and a copy that was broken off is none
        write_descriptor(target, descriptor, self._system)
        return outcome

    def _another_form(self, forms: Mapping[str, str | None]) -> _Form | None:
        descriptor = converted(self.descriptor, forms)
        if descriptor == self.descriptor:
            return None
        path = choose().path
        library = None if path is None else load(path)
        return _Form(descriptor, converters(self.descriptor.arrays, descriptor.arrays, library))

    def _outcome(self) -> Outcome:
        outcome = Outcome()
        for peer in self.writers:
            if peer.unreadable:
                outcome.damaged.append(f"{peer.name}{JOURNAL}: {peer.unreadable}")
            rows = peer.damaged + peer.trailing
            if rows:
                outcome.damaged.append(f"{peer.name}{JOURNAL}: {rows} of {peer.rows + peer.trailing} rows are damaged")
        return outcome

    def _parts(self, outcome: Outcome, progress: Progress, *, sure: bool = False) -> Iterator[tuple[str, _Part]]:
        """All good entries, in the order of the disk; when `sure`, an error that may pass is raised."""
        keys, places = self._table.items()
        rows = self._table.rows(places)
        # as they lie on disk
        order = np.lexsort((rows[:, RowFormat.SLOT], rows[:, RowFormat.KEY]))
        keys, rows = keys[order], rows[order]
        files = Files(self.location, self._system)
        digest = checksums.digest()
        try:
            start = 0
            while start < len(keys):
                number = rows[start, RowFormat.KEY]
                end = start + max(1, _PART // max(1, sum(array.nbytes for array in self.descriptor.arrays)))
                end = start + int((rows[start : min(end, start + 4096), RowFormat.KEY] == number).sum())
                reader = Reader(files, self._system, digest)
                part = self._part(reader, int(number), keys[start:end], rows[start:end], outcome)
                for error in reader.errors:
                    if sure and error.errno not in (errno.ENOENT, errno.EIO):
                        raise error
                yield self._table.name(int(number)), part
                outcome.nbytes += reader.nbytes
                progress(end - start)
                start = end
        finally:
            files.close()

    def _part(self, reader: Reader, number: int, keys: npt.NDArray[np.int64], rows: Words, outcome: Outcome) -> _Part:
        name = self._table.name(number)
        entries = Entries(self.descriptor.arrays, self._format, reader, name, keys, rows)
        bad: dict[int, str] = {}
        extras = [b""] * len(keys)

        def failed(entry: int, reason: str) -> None:
            bad.setdefault(entry, reason)

        for entry, blob, _ in entries.extras(failed):
            extras[entry] = bytes(blob)
        records = [entries.stored(position, failed) for position in range(len(self.descriptor.arrays))]
        for entry, reason in sorted(bad.items()):
            item, pass_ = unpack(keys[entry])
            outcome.bad.append(Bad(int(item), int(pass_), name, reason))
        good = [entry for entry in range(len(keys)) if entry not in bad]
        outcome.entries += len(good)
        whole = np.zeros((len(good), self._format.width), np.uint64)
        whole[:, :-1] = rows[good]
        whole[:, RowFormat.KEY] = keys[good]
        return _Part(
            keys[good], whole, [[each[entry] for entry in good] for each in records], [extras[entry] for entry in good]
        )

    def _remove(self, name: str) -> None:
        """Removes a writer's files: its journal first, so that no entry is left without its data."""
        arrays = [data_file(name, position) for position in range(len(self.descriptor.arrays))]
        for file in (name + JOURNAL, name + CLAIM, name + EXTRA, *arrays):
            self._remove_file(file)

    def _remove_file(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.remove(os.path.join(self.location, name))


class _Form:
    """Makes entries of another form."""

    def __init__(self, descriptor: Descriptor, converters: Sequence[Converter | None]) -> None:
        self.descriptor = descriptor
        self._converters = converters
        self._width = RowFormat(descriptor.arrays).width
        self._digest = checksums.digest()

    def of(self, part: _Part, writer: str, outcome: Outcome) -> _Part:
        """A part in that form; entries that cannot be are bad."""
        records, bad = list(part.records), dict[int, str]()
        sums = part.rows[:, RowFormat.SUMS : RowFormat.SUMS + len(records)].copy()
        for position, convert in enumerate(self._converters):
            if convert is None:
                continue
            made: list[Any] = []
            for entry, record in enumerate(records[position]):
                try:
                    made.append(memoryview(convert(record)))
                except Exception as error:  # of the packages, each has its own
                    bad.setdefault(entry, f"array {position}: {error}")
                    made.append(memoryview(b""))
            records[position] = made
            seeds = checksums.seeds(part.keys, position).tolist()
            sums[:, position] = [self._digest(each, seed) for each, seed in zip(made, seeds, strict=True)]
        for entry, reason in sorted(bad.items()):
            item, pass_ = unpack(part.keys[entry])
            outcome.bad.append(Bad(int(item), int(pass_), writer, reason))
        outcome.entries -= len(bad)
        good = [entry for entry in range(len(part.keys)) if entry not in bad]
        rows = np.zeros((len(good), self._width), np.uint64)
        rows[:, : RowFormat.SUMS] = part.rows[good, : RowFormat.SUMS]
        rows[:, RowFormat.SUMS : RowFormat.SUMS + len(records)] = sums[good]
        return _Part(
            part.keys[good], rows, [[each[entry] for entry in good] for each in records],
            [part.extras[entry] for entry in good],
        )  # fmt: skip


def _append(writer: Writer, part: _Part) -> None:
    if len(part.keys):
        writer.append(part.rows, part.records, part.extras)


def _is_ours(name: str) -> bool:
    """Whether a file is a writer's, or a draft of the description."""
    return name.startswith(f".{FILE}.") or is_writer(name.partition(".")[0])


def restore_descriptor(location: str, system: System | None = None) -> bool:
    """Restores `cache.json` from the journals, if it is damaged or missing; whether it had to be.

    Raises:
        CacheError: no journal says what the cache is of, or they do not agree.
        OSError: the directory cannot be read or written.
    """
    system = system or System()
    with contextlib.suppress(CacheError, FileNotFoundError):
        read_descriptor(location, system)
        return False
    found: list[Descriptor] = []
    for name in sorted(system.names(location)):
        if name.endswith(JOURNAL):
            with open(os.path.join(location, name), "rb") as file:
                head = unpack_head(file.read(1 << 20))
            if isinstance(head, Head) and head.descriptor not in found:
                found.append(head.descriptor)
    if len(found) != 1:
        what = "none of its journals says" if not found else "its journals do not agree about"
        raise CacheError(
            f"the description of the cache in {location} cannot be restored: {what} what it is of. Fill a new one."
        )
    write_descriptor(location, found[0], system, replace=True)
    return True
