"""Compression of single records, where an array asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydrax_gpu.errors import CacheError

__all__ = ["compressor", "decompressor"]


def compressor(name: str) -> Callable[[Any], bytes]:
    """A function that compresses the bytes of a record. Not for several threads at a time.

    Raises:
        CacheError: the package for it is not installed.
    """
    if name == "zstd":
        return _import("zstandard").ZstdCompressor(level=3, write_content_size=True).compress
    lz4 = _import("lz4.block")
    return lambda data: lz4.compress(data, store_size=False)


def decompressor(name: str) -> Callable[[Any, int], bytes]:
    """A function `(compressed, nbytes) -> bytes`, which raises when those are not `nbytes`. Not for several threads.

    Raises:
        CacheError: the package for it is not installed.
    """
    if name == "zstd":
        whole = _import("zstandard").ZstdDecompressor().decompress
        return lambda data, nbytes: _exactly(whole(data, max_output_size=nbytes), nbytes)
    lz4 = _import("lz4.block")
    return lambda data, nbytes: _exactly(lz4.decompress(data, uncompressed_size=nbytes), nbytes)


def _exactly(data: bytes, nbytes: int) -> bytes:
    if len(data) != nbytes:
        raise ValueError(f"{len(data)} bytes in place of {nbytes}")
    return data


def _import(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise CacheError(
            f"this cache is compressed by {package}, which cannot be imported ({error}): "
            "pip install 'hydrax-gpu[cache-compression]'."
        ) from error
