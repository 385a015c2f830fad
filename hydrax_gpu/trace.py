"""A timeline of a loader as a file, for Perfetto (ui.perfetto.dev), chrome://tracing, and `hydrax-gpu report`."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Trace", "TraceFile"]

TraceFile: TypeAlias = "Trace | str | os.PathLike[str]"
"""`Dataloader(trace=...)`: a path, or a `Trace` with settings of its own."""

_log = logging.getLogger("hydrax_gpu")

_TRACKS = {"consumer": 0, "engine": 1, "placement": 2, "copy": 3}
_FIRST_WORKER = 10
"""Thread numbers of the tracks: real ones would differ from run to run."""

_TOGETHER = 512
_FLUSH_NS = 1_000_000_000
_END = b"\n]\n"


class Trace:
    """Writes what a `Dataloader` does, and when, into a file: `Dataloader(..., trace="run.json")`.

    The file is in the JSON Array Format of the Trace Event Format, which Chrome and Perfetto read. It has a track for
    each worker (with its process id), for the engine, for placement, for copies to a device, and for the consumer with
    its steps and waits, and the number of slots by what they are at. Times are microseconds on the clock of
    `time.perf_counter`, which is one for all processes of a machine. Events have the position of their batch in the
    stream of training and validation batches, and the number of its items. A wait says what it was for.

    It is valid JSON at any time, also after the process was killed: each write takes the closing bracket back and sets
    it anew. What came within the last second may be missing then.

    An error of writing ends the trace and not the training; it is logged, and in the report's notes.

    Args:
        path: the file. What is there is overwritten when the loader is entered.
        limit_bytes: no more than that is written; the trace then ends before the run, which is logged, and in the
            report's notes. An event takes some 150 bytes, and a batch of one chunk some ten events.

    Raises:
        ValueError: the limit is too small to be of use.
    """

    def __init__(self, path: str | os.PathLike[str], *, limit_bytes: int = 256 << 20) -> None:
        if limit_bytes < 4096:
            raise ValueError(f"limit_bytes: got {limit_bytes!r}, wanted at least 4096")
        self.path: Path = Path(path)
        """The file."""
        self.note: str | None = None
        """Why the trace is not complete, if it is not."""
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._pid = 0
        self._fd = -1
        self._size = 0
        self._events: list[tuple[Any, ...]] = []
        self._flushed = 0
        self._workers: set[tuple[int, int]] = set()
        self._levels: dict[str, Mapping[str, float]] = {}

    @staticmethod
    def of(trace: TraceFile | None) -> Trace | None:
        """What `Dataloader(trace=...)` was given, as a trace.

        Raises:
            TypeError: it is none of these.
        """
        if trace is None or isinstance(trace, Trace):
            return trace
        if isinstance(trace, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            return Trace(trace)
        raise TypeError(f"trace: got {trace!r}, wanted the path of a file, or a hydrax_gpu.trace.Trace")

    def open(self, about: Mapping[str, Any]) -> None:
        """Begins the file.

        Args:
            about: what `hydrax-gpu report` should know of the loader.

        Raises:
            OSError: it cannot be written.
            RuntimeError: it was opened before.
        """
        if self._pid:
            raise RuntimeError(f"the trace {str(self.path)!r} belongs to another Dataloader: make one for each")
        self._pid = os.getpid()
        self._flushed = time.perf_counter_ns()
        # Not inherited by what user code may start. A file is opened only here, so that a forgotten one is seen early.
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._meta("process_name", self._pid, 0, {"name": "main process"})
        for name, track in _TRACKS.items():
            self._meta("thread_name", self._pid, track, {"name": name})
            self._meta("thread_sort_index", self._pid, track, {"sort_index": track})
        self._meta("hydrax_gpu", self._pid, 0, {**about, "pid": self._pid})
        self.flush()

    def span(self, track: str, name: str, begin: int, end: int, args: Mapping[str, Any]) -> None:
        """Something that took from `begin` to `end`, in nanoseconds of `time.perf_counter_ns`.

        Args:
            track: `engine`, `placement`, `copy` or `consumer`.
            name: what it was.
            begin: when it began.
            end: when it ended.
            args: what is to be known about it; JSON.
        """
        self._add(("X", self._pid, _TRACKS[track], name, begin, end, args))

    def chunk(self, pid: int, worker: int, name: str, begin: int, end: int, args: Mapping[str, Any]) -> None:
        """What the worker of that number, in that process, did from `begin` to `end`: `load` or `read`; as `span`."""
        track = _FIRST_WORKER + worker
        if (pid, worker) not in self._workers:
            self._workers.add((pid, worker))
            if pid != self._pid:
                self._meta("process_name", pid, track, {"name": f"worker {worker}"})
                self._meta("process_sort_index", pid, track, {"sort_index": track})
            self._meta("thread_name", pid, track, {"name": f"worker {worker}"})
        self._add(("X", pid, track, name, begin, end, args))

    def level(self, name: str, at: int, values: Mapping[str, float]) -> None:
        """Numbers that hold from `at` on."""
        if self._levels.get(name) != values:
            self._levels[name] = values
            self._add(("C", self._pid, 0, name, at, at, values))

    def _meta(self, name: str, pid: int, track: int, args: Mapping[str, Any]) -> None:
        self._add(("M", pid, track, name, 0, 0, args))

    def _add(self, event: tuple[Any, ...]) -> None:
        if self._fd < 0:
            return
        self._events.append(event)
        if len(self._events) >= _TOGETHER or event[5] - self._flushed > _FLUSH_NS:
            self.flush()

    def flush(self) -> None:
        """Writes what has come so far."""
        with self._lock:
            if self._fd < 0 or os.getpid() != self._pid:  # a fork must not write into its parent's file
                return
            events, self._events = self._events, []
            self._flushed = time.perf_counter_ns()
            if not events:
                return
            data = b",\n" if self._size else b"[\n"
            data += ",\n".join(map(_as_json, events)).encode()
            full = self._size + len(data) > self._limit
            if full:
                data = data[: data.rfind(b",\n", 0, max(0, self._limit - self._size))]
            data += _END
            begin = max(0, self._size - len(_END))
            try:
                # one call, so that no moment is without the closing bracket but that of a disk that is full
                written = os.pwrite(self._fd, data, begin)
                if written < len(data):
                    os.pwrite(self._fd, data[written:], begin + written)
            except OSError as error:
                self._end(f"the trace {str(self.path)!r} could not be written any further: {error}")
                return
            self._size = begin + len(data)
            if full:
                self._end(f"the trace {str(self.path)!r} has reached its limit of {self._limit:,} bytes and ends there")

    def close(self) -> None:
        """Writes the rest and closes the file. Idempotent."""
        self.flush()
        with self._lock:
            self._close()

    def _end(self, note: str) -> None:
        self.note = note
        _log.warning("%s", note)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _as_json(event: tuple[Any, ...]) -> str:
    kind, pid, track, name, begin, end, args = event
    times = f'"ts":{begin / 1e3:.3f},"dur":{(end - begin) / 1e3:.3f},' if kind == "X" else f'"ts":{begin / 1e3:.3f},'
    return f'{{"ph":"{kind}","pid":{pid},"tid":{track},"name":"{name}",{times}"args":{json.dumps(args)}}}'
