"""How much memory there is to take, asked before it is taken.

The kernel hands out memory that it does not have and kills the process that comes to use it, with no word on why. What
can be known before, from /proc and the control groups, becomes an error that says it. It is a check and no
requirement: a file that is missing, unreadable or odd limits nothing.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydrax_gpu.errors import NotEnoughMemory

__all__ = ["Room", "cgroup_levels", "check", "read_file", "room"]

_log = logging.getLogger("hydrax_gpu")

_NO_LIMIT_V1 = 1 << 60  # version 1 writes "none" as the largest number of whole pages
_RAISE_CGROUP = "raise that limit: docker run --memory, resources.limits.memory of the pod, sbatch --mem"
_FIX = {
    "memory.max": f"{_RAISE_CGROUP}, MemoryMax= of the systemd unit",
    "memory.high": f"{_RAISE_CGROUP}, MemoryHigh= of the systemd unit",
    "memory.limit_in_bytes": _RAISE_CGROUP,
}

_PATH_MAX = 4096
"""The longest path that Linux opens."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one limit leaves.

    Attributes:
        what: the limit, such as `memory limit of the cgroup /job (memory.max)`.
        limit: bytes that it allows.
        used: bytes of those that are taken and that the kernel cannot get back; 0 when unknown.
        fix: what to do about it, other than to need less.
    """

    what: str
    limit: int
    used: int
    fix: str

    @property
    def bytes(self) -> int:
        """Bytes that are free, at least 0."""
        return max(0, self.limit - self.used)


def room(*, shared: bool, root: Path = Path("/")) -> Room | None:
    """The limit that leaves the least memory to this process; `None` when nothing can be known.

    Args:
        shared: whether the memory is to be shared by a file descriptor, and so counts as a file.
        root: where /proc and /sys are.
    """
    found = [*_resource_limits(root, shared=shared), *_cgroups(root), *_machine(root)]
    if not found:
        _log.debug("cannot tell how much memory is free (nothing in /proc says it); the need is not checked")
    return min(found, key=lambda one: one.bytes, default=None)


def check(size: int, *, shared: bool, what: str, root: Path = Path("/")) -> None:
    """Refuses what would not fit.

    Args:
        size: bytes that are needed.
        shared: as for `room`.
        what: what needs them, in the plural, such as `3 slots of 4,096 bytes`.
        root: as for `room`.

    Raises:
        NotEnoughMemory: there is less.
    """
    tightest = room(shared=shared, root=root)
    if tightest is None or size <= tightest.bytes:
        return
    use = f". Of its {tightest.limit:,} bytes, {tightest.used:,} are in use" if tightest.used else ""
    raise NotEnoughMemory(what, size, tightest.bytes, tightest.what, tightest.fix + use)


def _resource_limits(root: Path, *, shared: bool) -> Iterator[Room]:
    if (limit := _resource_limit(resource.RLIMIT_AS)) is not None:
        used = _table(root / "proc/self/status").get("VmSize", 0)
        yield Room("limit on the address space (RLIMIT_AS)", limit, used, "raise that limit: ulimit -v")
    if shared and (limit := _resource_limit(resource.RLIMIT_FSIZE)) is not None:
        fix = "raise that limit: ulimit -f (memory that worker processes share counts as a file)"
        yield Room("limit on the size of a file (RLIMIT_FSIZE)", limit, 0, fix)


def _resource_limit(number: int) -> int | None:
    try:
        limit = resource.getrlimit(number)[0]
    except (OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY or limit < 0 else limit


def _machine(root: Path) -> Iterator[Room]:
    table = _table(root / "proc/meminfo")
    if (free := table.get("MemAvailable")) is not None:
        total = table.get("MemTotal", free)
        fix = "end other programs on this machine"
        yield Room("memory of this machine (MemAvailable)", total, max(0, total - free), fix)


def _cgroups(root: Path) -> Iterator[Room]:
    base = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root):
        if not controllers:
            for mount in (base, base / "unified"):  # beside version 1, version 2 is at the second
                for level, name in _levels(mount, path):
                    yield from _version_2(level, name)
        elif "memory" in controllers.split(","):
            for nth, (level, name) in enumerate(_levels(base / "memory", path)):
                if nth and _number(read_file(level / "memory.use_hierarchy")) == 0:
                    break  # its limit is for its own processes alone
                yield from _version_1(level, name)


def cgroup_levels(root: Path) -> Iterator[tuple[str, Path, str]]:
    """The folders of the control groups for processors that this process is in, each with those around it, inside out.

    Yields:
        The controllers, "" for version 2; the folder; its name.
    """
    base = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root):
        mounts = [base, base / "unified"]
        if controllers:
            mounts = [base / controllers, base / "cpu"] if "cpu" in controllers.split(",") else []
        for mount in dict.fromkeys(mounts):
            for level, name in _levels(mount, path):
                yield controllers, level, name


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    for line in read_file(root / "proc/self/cgroup").split("\n"):
        fields = line.split(":", 2)
        if len(fields) == 3:
            yield fields[1], fields[2]


def _levels(mount: Path, path: str) -> list[tuple[Path, str]]:
    """The folders of a cgroup and of those around it, inside out, each with its name.

    A container may see the names that its host gave, but find mounted only its own part of the tree. So as many of the
    outer names are left out as it takes to find the rest.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts or len(path) > _PATH_MAX:  # outside of what the container may see, or of what there can be
        parts = []
    for first in range(len(parts) + 1):
        if os.path.isdir(mount.joinpath(*parts[first:])):
            ends = range(len(parts), first - 1, -1)
            return [(mount.joinpath(*parts[first:end]), "/" + "/".join(parts[:end])) for end in ends]
    return []


def _version_2(level: Path, name: str) -> Iterator[Room]:
    # Beyond `high` nothing is killed, but the process is slowed down until it all but stands still.
    limits = [(file, _number(read_file(level / file))) for file in ("memory.max", "memory.high")]
    for file, limit in limits:
        if limit is not None:
            cache = ("inactive_file", "active_file", "slab_reclaimable")
            yield _cgroup(level, name, file, limit, "memory.current", cache)


def _version_1(level: Path, name: str) -> Iterator[Room]:
    file = "memory.limit_in_bytes"
    limit = _number(read_file(level / file))
    if limit is not None and limit < _NO_LIMIT_V1:
        yield _cgroup(level, name, file, limit, "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def _cgroup(level: Path, name: str, file: str, limit: int, usage: str, cache: tuple[str, ...]) -> Room:
    # The kernel gives up its cache of files before it kills. Memory shared with workers, though made of files too, is
    # in none of these counts: it is on the lists for anonymous memory.
    used = _number(read_file(level / usage)) or 0
    table = _table(level / "memory.stat")
    used = max(0, used - sum(table.get(key, 0) for key in cache))
    return Room(f"memory limit of the cgroup {name} ({file})", limit, used, _FIX[file])


def read_file(path: Path) -> str:
    """The text of a file, empty when it cannot be had."""
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None  # 64 bits have 20 digits


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file with lines such as `active_file 4096` or `VmSize:  4 kB`, in bytes."""
    table: dict[str, int] = {}
    for line in read_file(path).split("\n"):
        name, value, *unit = [*line.split(), "", ""][:3]
        if (number := _number(value)) is not None:
            table[name.rstrip(":")] = number * (1024 if unit == ["kB"] else 1)
    return table
