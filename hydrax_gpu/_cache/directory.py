"""The directory of a cache and the file that says what it is of."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from hydrax_gpu._cache.descriptor import FILE, Descriptor, check, from_json, to_json
from hydrax_gpu._cache.system import System
from hydrax_gpu.errors import CacheError

if TYPE_CHECKING:
    from hydrax_gpu._cache.store import StoreSpec

__all__ = ["open_directory", "read_descriptor", "write_descriptor"]


def open_directory(spec: StoreSpec, system: System) -> None:
    """Makes sure that there is a cache of what is wanted.

    Raises:
        CacheMismatch: there is one of something else.
        CacheError: there is none, and it may or can not be made.
    """
    path = os.path.join(spec.location, FILE)
    try:
        if not os.path.lexists(path) and not spec.readonly:
            system.make_directory(spec.location)
            write_descriptor(spec.location, spec.descriptor, system)
        stored = read_descriptor(spec.location, system)
    except OSError as error:
        fix = "Fill it first without cache_readonly." if spec.readonly else "Give permission, or name another location."
        raise CacheError(f"the cache in {spec.location} cannot be opened: {error.strerror or error}. {fix}") from error
    check(spec.location, stored, spec.descriptor)


def read_descriptor(location: str, system: System) -> Descriptor:
    """What a cache is of.

    Raises:
        CacheError: the description is damaged.
        OSError: it cannot be read.
    """
    path = os.path.join(location, FILE)
    fd = system.open(path)
    try:
        data = bytearray(system.size(fd))
        got = system.read(fd, [data], 0, len(data))
    finally:
        system.close(fd)
    return from_json(bytes(data[:got]), path)


def write_descriptor(location: str, descriptor: Descriptor, system: System, *, replace: bool = False) -> None:
    """Writes what a cache is of; another process may be first.

    Raises:
        OSError: it cannot be written.
    """
    path, draft = os.path.join(location, FILE), os.path.join(location, f".{FILE}.{secrets.token_hex(8)}")
    fd = system.create(draft)
    try:
        try:
            system.write(fd, [to_json(descriptor).encode()], 0)
            system.sync(fd)
        finally:
            system.close(fd)
        if replace:
            os.replace(draft, path)
        else:
            with contextlib.suppress(FileExistsError):
                system.link(draft, path)
    finally:
        with contextlib.suppress(OSError):
            system.remove(draft)
