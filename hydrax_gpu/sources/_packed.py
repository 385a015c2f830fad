"""`PackedSource`: rows of one length, packed of documents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import at_least, choice, integer
from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.sources._files import Opened
from hydrax_gpu.sources._packing import Long, Packing, PackingReport, document_order, pack
from hydrax_gpu.sources._source import Arrays, Parts, Reader, Source
from hydrax_gpu.sources._tokens import (
    OpenTokens,
    Span,
    TokenReader,
    Tokens,
    TokenSource,
    TokenTable,
    checked,
    put,
    tokens_of,
)

__all__ = ["PackedRow", "PackedSource"]

_log = logging.getLogger("hydrax_gpu")

_ARRAYS = ("tokens", "segment_ids", "positions", "loss_mask", "targets")
_LONG: tuple[Long, ...] = ("split", "truncate", "drop")


class PackedRow(NamedTuple):
    """Descriptor of a row of pieces of documents.

    Attributes:
        spans: the pieces, in the order of their places.
    """

    spans: tuple[Span, ...]


@final
class PackedSource(Source[PackedRow, "dict[str, npt.NDArray[Any]]"]):
    """Rows of one length, each of pieces of documents, packed by first fit.

    The documents are put in an order that (seed, epoch) determines, and packed as `docs/tokens.md` defines it: each
    into the first row, of those that are open, that has room. Nothing is lost: `report` says what was cut off or left
    out, if that was asked for. The packing is made at once, some 3 µs a document, and is the same on every machine;
    so a run that was stopped goes on exactly, with the group's shuffle on top or without it.

    The value of an item is a dict of arrays of shape `(length,)`:

    - `tokens`, int32: the pieces, one behind the other, and `pad` behind them.
    - `segment_ids`, int32: the number of the piece in the row, from 1; 0 where there is none.
    - `positions`, int32: the place in the piece, from 0; 0 where there is none.
    - `loss_mask`, bool: where the next place has a token of the same piece, so that there is something to predict.
    - `targets`, int32: the token at the next place where `loss_mask` is true, and `pad` elsewhere.

    Args:
        documents: a `TokenSource`, or a slice of one.
        length: places of a row.
        seed: determines the order of the documents, `0 <= seed < 2**64`; None: as they are.
        epochs: how many epochs are packed, each with another order; the rows of one follow those of the one before. For
            several, give the group no shuffle, and let it run for one epoch of its own.
        open_rows: how many rows can be open while documents are packed; None: all of them, which fills rows best.
        long: documents that are longer than a row are `"split"` into pieces, of which each is a segment of its own, or
            `"truncate"`d to the first, or `"drop"`ped.
        pad: token behind the pieces.

    Raises:
        ValueError, TypeError: an argument is not valid; or there is no row, for example because all documents are
            dropped.
    """

    def __init__(
        self,
        documents: Source[Span, Tokens],
        length: int,
        *,
        seed: int | None = None,
        epochs: int = 1,
        open_rows: int | None = None,
        long: Long = "split",
        pad: int = 0,
    ) -> None:
        if not isinstance(getattr(documents, "reader", None), TokenReader):
            raise TypeError(f"documents: got {type(documents).__name__}, wanted a TokenSource or a slice of one")
        self._documents = documents
        self._length = at_least("length", length, 1)
        self._reader = _PackedReader(self._length, integer("pad", pad))
        choice("long", long, _LONG)
        if open_rows is not None:
            at_least("open_rows", open_rows, 1)
        if seed is None and at_least("epochs", epochs, 1) > 1:
            raise ValueError(f"epochs: got {epochs} without a seed, which would be the same each time; give seed=")
        lengths = _lengths(documents)
        self._packings: list[Packing] = []
        for epoch in range(at_least("epochs", epochs, 1)):
            order = None if seed is None else document_order(len(lengths), integer("seed", seed), epoch)
            self._packings.append(pack(lengths, self._length, order=order, open_rows=open_rows, long=long))
        counts = [packing.report.rows for packing in self._packings]
        self._places = Parts(counts)
        if not len(self):
            raise ValueError(f"got no row out of {self.report}; wanted at least one")
        report = self.report
        lost = report.truncated_tokens or report.dropped_documents
        _log.log(logging.WARNING if lost else logging.INFO, "packed: %s", report)

    @property
    def reader(self) -> Reader[PackedRow, dict[str, npt.NDArray[Any]]]:
        return self._reader

    @property
    def report(self) -> PackingReport:
        """What the packing of the first epoch came to."""
        return self._packings[0].report

    @property
    def reports(self) -> tuple[PackingReport, ...]:
        """The same, of every epoch."""
        return tuple(packing.report for packing in self._packings)

    def __len__(self) -> int:
        return self._places.total

    def descriptor(self, index: int) -> PackedRow:
        epoch, number = self._places.find(index)
        packing, row = self._packings[epoch], number
        begin, end = packing.rows[row : row + 2].tolist()
        pieces = zip(
            packing.document[begin:end].tolist(),
            packing.begin[begin:end].tolist(),
            packing.size[begin:end].tolist(),
            strict=True,
        )
        return PackedRow(tuple(self._span(*piece) for piece in pieces))

    def _span(self, document: int, begin: int, size: int) -> Span:
        table, first, _ = self._documents.descriptor(document)
        return Span(table, first + begin, size)

    def arrays(self, *names: str) -> dict[str, ArraySpec]:
        """What `DataGroup(loader_arrays=...)` wants.

        Args:
            *names: of the arrays, see the class; without any, all but `targets`.
        """
        chosen = names or _ARRAYS[:-1]
        if unknown := [name for name in chosen if name not in _ARRAYS]:
            raise ValueError(f"got {', '.join(map(repr, unknown))}, wanted some of {', '.join(_ARRAYS)}")
        kinds = {name: np.dtype(bool) if name == "loss_mask" else np.dtype(np.int32) for name in chosen}
        return {name: ArraySpec((self._length,), kind, kind) for name, kind in kinds.items()}


def _lengths(documents: Source[Span, Tokens]) -> npt.NDArray[np.int64]:
    if isinstance(documents, TokenSource):
        return documents.lengths
    return np.fromiter((documents.descriptor(i).size for i in range(len(documents))), np.int64, len(documents))


@final
class _PackedReader(Reader[PackedRow, "dict[str, npt.NDArray[Any]]"]):
    def __init__(self, length: int, pad: int) -> None:
        self._length, self._pad = length, pad
        self._begin()

    def _begin(self) -> None:
        self._opened: Opened[TokenTable, OpenTokens] = Opened(OpenTokens)
        self._open_places = np.arange(self._length, dtype=np.int32)

    def read_rows(self, items: Sequence[PackedRow]) -> list[dict[str, npt.NDArray[Any]] | BaseException]:
        values = [
            {name: np.empty(self._length, bool if name == "loss_mask" else np.int32) for name in _ARRAYS} for _ in items
        ]
        outcomes = self.fill_rows(items, values)
        return [value if outcome is None else outcome for value, outcome in zip(values, outcomes, strict=True)]

    def fill_rows(self, items: Sequence[PackedRow], arrays: Sequence[Arrays]) -> list[BaseException | None]:
        spans = [span for item in items for span in item.spans]
        found = iter(checked(self._opened, spans))
        outcomes: list[BaseException | None] = []
        for item, row in zip(items, arrays, strict=True):
            pieces = [tokens_of(self._opened, next(found)) for _ in item.spans]
            wrong: BaseException | None = next((each for each in pieces if isinstance(each, BaseException)), None)
            if wrong is None:
                try:
                    self._fill(pieces, row)
                except Exception as error:
                    wrong = error
            outcomes.append(wrong)
        return outcomes

    def _fill(self, pieces: list[Tokens], arrays: Arrays) -> None:
        for name, array in arrays.items():
            if name not in _ARRAYS or array.shape != (self._length,):
                raise ValueError(
                    f"got an array {name!r} of shape {array.shape}, wanted some of {', '.join(_ARRAYS)} of shape "
                    f"{(self._length,)}, as arrays() declares them"
                )
            end = 0
            for segment, tokens in enumerate(pieces, 1):
                begin, end = end, end + len(tokens)
                if name == "tokens":
                    put(array[begin:end], tokens)
                elif name == "segment_ids":
                    array[begin:end] = segment
                elif name == "positions":
                    array[begin:end] = self._open_places[: len(tokens)]
                elif name == "loss_mask":
                    array[begin : end - 1] = True
                    array[end - 1] = False
                else:
                    put(array[begin : end - 1], tokens[1:])
                    array[end - 1] = self._pad
            array[end:] = self._pad if name in ("tokens", "targets") else 0
