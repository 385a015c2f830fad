"""A cache on file systems that really refuse: `python -m tests.cache_faults CASE`, one of

    permission          a user who may read a directory and not write to it, or not even read all of it
    readonly            a file system that is mounted for reading only
    full                a file system of some kilobytes

Each ends with status 77, and says why, where this process may not do what it takes. Children are forked, so that this
needs a process without threads and without jax.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from hydrax_gpu._cache import Store
from hydrax_gpu._cache.maintenance import Cache
from hydrax_gpu._exec.rowstore import RowStore
from hydrax_gpu.errors import CacheError, CacheWriteError
from tests.cache_crash import ended, forked
from tests.caches import content, fill, journals, keys, read, spec, write

CANNOT = 77
_NEW_NAMESPACE, _READ_ONLY, _REMOUNT, _PRIVATE = 0x20000, 1, 32, 1 << 18 | 1 << 14
_KIB = 400


class Cannot(Exception):
    """This process may not do what the case needs."""


def as_nobody(body: Callable[[], int]) -> int:
    """What `body` returns in a child that has given up its privileges."""

    def child() -> int:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return body()

    return ended(forked(guarded(child)))


def mounted(folder: str, flags: int, options: str, source: str = "none") -> None:
    """Mounts a tmpfs at a folder, or mounts it anew with other flags; nobody but this process sees it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), folder.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode()):
        raise Cannot(f"mounting is not allowed here: {os.strerror(ctypes.get_errno())}")


def own_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NAMESPACE) or libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None):
        raise Cannot(f"a mount namespace of one's own is not allowed here: {os.strerror(ctypes.get_errno())}")


def refused(store: Store, number: int) -> None:
    """Writing ends with that error, once, and what is there is read all the same."""
    for _ in range(2):
        try:
            assert write(store, keys(range(100, 120))) == 0 and store.disabled is not None
        except CacheWriteError as error:
            assert error.errno == number and os.strerror(number) in str(error), error
    assert not read(store, keys(range(40))), "what is there stays good"


def permission() -> None:
    """Another user: may read, may not write; then may not read what one of the writers has written, either."""
    if os.getuid():
        raise Cannot("only root can become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        location = os.path.join(folder, "cache")
        fill(location, range(40)).close()

        def reads() -> int:
            refused(Store.open(spec(location)), errno.EACCES)
            assert not read(Store.open(spec(location, readonly=True)), keys(range(40)))
            return 0

        assert as_nobody(reads) == 0

        # one more writer, of whom nothing can be read
        store = Store.open(spec(location))
        assert write(store, keys(range(40, 60))) == 20
        store.close()
        (theirs,) = [name for name in journals(Path(location)) if not holds(location, name)]
        os.chmod(f"{location}/{theirs}.journal", 0o600)

        def misses() -> int:
            rows = RowStore(spec(location), 0)
            assert rows.store is not None
            assert read(rows.store, keys(range(60))) == set(range(40, 60))
            counts = rows.take_counts()
            assert counts is not None and os.strerror(errno.EACCES) in counts.trouble and theirs in counts.trouble
            return 0

        assert as_nobody(misses) == 0
        os.chmod(f"{location}/{theirs}.journal", 0o644)
        for part in Path(location).glob(f"{theirs}.*.bin"):
            part.chmod(0o600)

        def bad() -> int:
            store = Store.open(spec(location))
            assert read(store, keys(range(60))) == set(range(40, 60))
            assert any(os.strerror(errno.EACCES) in reason for reason in store.stats.reasons), store.stats.reasons
            return 0

        assert as_nobody(bad) == 0
        os.chmod(location, 0o700)

        def closed() -> int:
            try:
                Store.open(spec(location))
            except (CacheError, PermissionError) as error:
                assert os.strerror(errno.EACCES) in str(error)
                return 0
            return 1

        assert as_nobody(closed) == 0
        os.chmod(location, 0o755)
        assert not read(Store.open(spec(location)), keys(range(60)))
    print("permission: reads, and writes nothing; what cannot be read is missing, and told")


def holds(location: str, name: str) -> bool:
    """Whether a writer has the first items."""
    return os.path.getsize(f"{location}/{name}.0.bin") == content(keys(range(40)))[0]["x"].nbytes


def readonly() -> None:
    """A mount that is made read-only under a store that has written to it."""
    with tempfile.TemporaryDirectory() as folder:

        def work() -> int:
            own_namespace()
            mounted(folder, 0, "size=4m")
            location = os.path.join(folder, "cache")
            fill(location, range(40)).close()
            store = Store.open(spec(location))
            mounted(folder, _REMOUNT | _READ_ONLY, "")
            refused(store, errno.EROFS)
            refused(Store.open(spec(location)), errno.EROFS)
            assert not read(Store.open(spec(location, readonly=True)), keys(range(40)))
            try:
                Store.open(spec(os.path.join(folder, "another")))
            except CacheError as error:
                assert os.strerror(errno.EROFS) in str(error)
            else:
                raise AssertionError("a directory was made there")
            assert Cache(location).verify().good
            return 0

        outcome(ended(forked(guarded(work))))
    print("readonly: reads, and writes nothing")


def full() -> None:
    """A disk that gets full in the middle of a write, and has room again later."""
    with tempfile.TemporaryDirectory() as folder:

        def work() -> int:
            own_namespace()
            mounted(folder, 0, f"size={_KIB}k")
            location, written = os.path.join(folder, "cache"), 0
            store = Store.open(spec(location))
            ballast = Path(folder, "ballast")
            ballast.write_bytes(bytes(_KIB // 2 * 1024))
            for start in range(0, 1000, 50):
                try:
                    written += write(store, keys(range(start, start + 50)))
                except CacheWriteError as error:
                    assert error.errno == errno.ENOSPC
                    break
            else:
                raise AssertionError("it was never full")
            assert 0 < written < 1000 and not read(store, keys(range(written)))
            assert not read(Store.open(spec(location)), keys(range(written)))
            ballast.unlink()
            assert write(Store.open(spec(location)), keys(range(written + 50))) >= 50 - written % 50
            again = Store.open(spec(location))
            assert not read(again, keys(range(written + 50)))
            assert not Cache(location).verify().bad
            return 0

        outcome(ended(forked(guarded(work))))
    print("full: what was written before is good, and the rest is written when there is room")


def guarded(body: Callable[[], int]) -> Callable[[], int]:
    def run() -> int:
        try:
            return body()
        except Cannot as reason:
            print(reason, flush=True)
            return CANNOT
        except BaseException:
            traceback.print_exc()
            raise

    return run


def outcome(status: int) -> None:
    if status == CANNOT:
        raise Cannot("see above")
    assert status == 0, status


def main(arguments: list[str]) -> int:
    # all packages are imported before the first fork
    with tempfile.TemporaryDirectory() as location:
        fill(location, range(5)).close()
        assert not read(Store.open(spec(location)), keys(range(5)))
        Cache(location).verify()
    cases = {"permission": permission, "readonly": readonly, "full": full}
    for name in arguments or cases:
        cases[name]()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Cannot as reason:
        print(reason)
        sys.exit(CANNOT)
