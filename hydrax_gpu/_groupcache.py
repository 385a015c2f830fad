"""What a `DataGroup` says of its cache, and what a cache is said to be of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from hydrax_gpu._cacheforms import Form, array_formats, chosen_forms, quantized
from hydrax_gpu._kernels.choice import choose
from hydrax_gpu._plan import GroupPlan
from hydrax_gpu._spec import ArrayLayout, Layout, LayoutTuple

__all__ = ["CacheDeclaration", "CacheKind", "declare", "store_spec"]

CacheKind: TypeAlias = Literal["direct", "encoded"]


@dataclass(slots=True, eq=False)
class CacheDeclaration:
    """The cache of a group.

    Attributes:
        kind: "direct": what the loader function writes is cached. "encoded": what `Batch.cache` is given.
        layout: of a cached batch.
        kept: the arrays that are kept, as they are declared. Before any decode, which is a pure function of them.
        forms: how those are kept that are not kept as they are, by their names.
        location: directory; None to keep nothing.
        readonly: whether nothing is added to it.
        only: whether batches come from it alone.
        version: what made the values.
        fingerprint: of the data; "" until it is needed, since it takes a while.
    """

    kind: CacheKind
    layout: Layout
    kept: tuple[ArrayLayout, ...]
    forms: Mapping[str, Form]
    location: str | None
    readonly: bool
    only: bool
    version: str
    layouts: MappingProxyType[str, LayoutTuple] = field(init=False)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.layouts = self.layout.tuples()


def declare(
    rows: int,
    loaded: Layout | None,
    arrays: Mapping[str, Any] | None,
    location: str | os.PathLike[str] | None,
    readonly: bool,
    version: str,
    compression: object,
) -> CacheDeclaration | None:
    """What a group's arguments say of its cache; None when it has none.

    Args:
        rows: items of a batch.
        loaded: the layout of `loader_arrays`, if it has any.
        arrays: its `cache_arrays`.
        location: its `cache_location`.
        readonly: its `cache_readonly`.
        version: its `cache_version`.
        compression: its `cache_compression`.

    Raises:
        ValueError, TypeError: an argument is not valid, or does not go with the others.
    """
    if not isinstance(version, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"cache_version: got {version!r}, wanted a string such as 'vae-1.2'")
    path: str | None = None
    if location is not None:
        try:
            path = os.fspath(location)
        except TypeError:
            raise TypeError(
                f"cache_location: got {type(location).__name__}, wanted a directory as a string or path"
            ) from None
        if not isinstance(path, str) or not path:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"cache_location: got {path!r}, wanted the name of a directory, or None for no cache")
        path = os.path.abspath(path)  # workers may be in another one
    if loaded is None:
        if arrays is None:
            raise ValueError(
                "got neither loader_arrays nor cache_arrays, wanted loader_arrays for what the loader function fills, "
                "or cache_arrays and cache_location for batches that are in a cache"
            )
        if path is None:
            raise ValueError(
                "got cache_arrays without loader_arrays and without a cache_location: such batches come from the cache "
                "alone. Say where it is, or declare loader_arrays"
            )
    if path is None and compression is not None:
        raise ValueError(
            "got cache_compression without a cache_location, so that nothing is kept. Give the location, or leave "
            "cache_compression out"
        )
    if path is None and version:
        raise ValueError("got a cache_version without a cache_location, wanted both or neither")
    if arrays is None:
        if path is None:
            if readonly:
                raise ValueError(
                    "got cache_readonly without a cache_location, so there is nothing to read. Give the location, or "
                    "leave cache_readonly out"
                )
            return None
        assert loaded is not None
        forms = chosen_forms(compression, loaded.wire, shared=True)
        return CacheDeclaration("direct", loaded, loaded.wire, forms, path, bool(readonly), False, version)
    try:
        layout = Layout.build(rows, arrays)
    except (TypeError, ValueError) as error:
        raise type(error)(f"cache_arrays: {error}") from None
    if layout.decodes:
        raise ValueError(
            f"cache_arrays: got a decode for array {layout.decodes[0][0]!r}; cached batches are read as they were "
            "given to Batch.cache. Declare what is kept, and decode it in the training step"
        )
    forms = chosen_forms(compression, layout.arrays, shared=False)
    return CacheDeclaration(
        "encoded",
        quantized(layout, forms),
        layout.arrays,
        forms,
        path,
        bool(readonly) or loaded is None or path is None,
        loaded is None,
        version,
    )


def store_spec(cache: CacheDeclaration, plan: GroupPlan, data: Sequence[Any], *, validation: bool) -> Any:
    """What the store of a group has to be of, for `hydrax_gpu._cache.Store.open`.

    Validation has neither seeds nor, within a pass, another order: what it caches does not depend on any. And it must
    not be taken for what training caches, which does.
    """
    from hydrax_gpu._cache import Descriptor, StoreSpec, fingerprint  # only whoever has a cache needs it

    assert cache.location is not None
    if not cache.fingerprint:
        cache.fingerprint = fingerprint(data)
    renewed = plan.shuffle_later in ("reseed", "itemwise")
    descriptor = Descriptor(
        arrays=array_formats(cache.kept, cache.forms),
        length=plan.length,
        seed=0 if validation else plan.seed,
        seeded="pass" if renewed and not validation else "item",
        shuffle_first=plan.shuffle_first and not validation,
        shuffle_later="validation" if validation else plan.shuffle_later,
        fingerprint=cache.fingerprint,
        cache_version=cache.version,
    )
    return StoreSpec(cache.location, descriptor, cache.readonly, choose().path)
