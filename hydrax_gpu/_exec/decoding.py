"""Decoding of rows that were loaded: from what the loader function has written to what the batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from hydrax_gpu._kernels.host import load
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._spec import Layout, kept
from hydrax_gpu.errors import DecodeError

__all__ = ["RowDecoder"]


class RowDecoder:
    """Decodes rows of the slots of one layout. The views of a slot are made once, like those of its items."""

    def __init__(self, layout: Layout, arena: Arena, kernels: str | None) -> None:
        library = load(kernels) if kernels is not None else None
        declared, outputs = kept(layout.wire), kept(layout.arrays)
        self._layout = layout
        self._arena = arena
        self._bound = [(name, decode.bind(library, name, declared, outputs)) for name, decode in layout.decodes]
        self._views: dict[int, tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]] = {}

    def __call__(self, slot: int, begin: int, end: int) -> Mapping[int, DecodeError]:
        """Decodes the rows `begin .. end` of the slot; returns what is wrong, by row."""
        views = self._views.get(slot)
        if views is None:
            memory = self._arena.slot(slot)
            views = self._views[slot] = (self._layout.wire_views(memory), self._layout.batch_views(memory))
        loaded, batch = ({name: view[begin:end] for name, view in each.items()} for each in views)
        wrong: dict[int, DecodeError] = {}
        for name, decode in self._bound:
            for row, text in decode(loaded, batch).items():
                wrong.setdefault(begin + row, DecodeError(f"array {name!r}: {text}"))
        return wrong
