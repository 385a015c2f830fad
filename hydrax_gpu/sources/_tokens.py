"""`TokenSource`: documents of tokens in mapped files. `PackedSource`: rows of one length, packed of them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import at_least, choice, integer
from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.decode.ragged import PadRagged
from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._files import LocalFile, Opened, identify
from hydrax_gpu.sources._npy import NpyColumn, column_of
from hydrax_gpu.sources._packing import Long, Packing, PackingReport, document_order, pack
from hydrax_gpu.sources._source import Arrays, Reader, Source

__all__ = ["PackedRow", "PackedSource", "Span", "TokenSource", "write_tokens"]

_log = logging.getLogger("hydrax_gpu")

Path: TypeAlias = "str | os.PathLike[str]"
Tokens: TypeAlias = npt.NDArray[Any]
Offsets: TypeAlias = "Path | npt.NDArray[Any]"

_ARRAYS = ("tokens", "segment_ids", "positions", "loss_mask", "targets")
_LONG: tuple[Long, ...] = ("split", "truncate", "drop")


@dataclass(frozen=True, slots=True, repr=False)
class TokenTable:
    """A file of tokens."""

    column: NpyColumn

    def __repr__(self) -> str:
        return self.column.file.path


class Span(NamedTuple):
    """Descriptor of some tokens that follow each other in a file: of a document, or a piece of one.

    Attributes:
        table: the file; the same object for all spans of it.
        begin: the first token, counted from the file's first.
        size: how many.
    """

    table: TokenTable
    begin: int
    size: int


class PackedRow(NamedTuple):
    """Descriptor of a row of pieces of documents.

    Attributes:
        spans: the pieces, in the order of their places.
    """

    spans: tuple[Span, ...]


@final
class TokenSource(Source[Span, Tokens]):
    """Documents of tokens: files in which all of them lie one behind the other, and the places where each begins.

    The value of an item is its tokens, a read-only view of the mapped file. A loader without `fill` puts them into
    the beginning of an array `tokens`, and their number into one called `length`: what `arrays()` declares, for padded
    batches with masks.

    Args:
        tokens: an `.npy` file of shape `(n,)`, or a file of nothing but the tokens, whose `dtype` must be given; or
            several such files, one behind the other.
        offsets: `(documents + 1,)` integers, in an `.npy` file or an array: document `i` is
            `tokens[offsets[i]:offsets[i + 1]]`; the first is 0 and the last the number of tokens. As many as files.
        dtype: of the tokens in files that do not say it.
        truncate: whether documents that are longer than the array are cut, which the report counts; otherwise each is a
            bad item.

    Raises:
        OSError: a file is not there.
        ValueError, TypeError: the tokens are no integers, or the offsets do not fit them.
    """

    def __init__(
        self,
        tokens: Path | Sequence[Path],
        offsets: Offsets | Sequence[Offsets],
        *,
        dtype: npt.DTypeLike | None = None,
        truncate: bool = False,
    ) -> None:
        files = [tokens] if isinstance(tokens, str | os.PathLike) else list(tokens)
        if isinstance(offsets, str | os.PathLike | np.ndarray):
            ends: list[Offsets] = [offsets]
        else:
            ends = list(offsets)
        if len(files) != len(ends) or not files:
            raise ValueError(
                f"got {len(files)} files of tokens and {len(ends)} of offsets, wanted as many, at least one"
            )
        self._tables = [TokenTable(_column(path, dtype)) for path in files]
        self._offsets = [_offsets(each, table) for each, table in zip(ends, self._tables, strict=True)]
        counts = [len(each) - 1 for each in self._offsets]
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts
        self._truncate = bool(truncate)
        if not len(self):
            raise ValueError(f"{self._tables[0]}: got no document, wanted at least one")

    @property
    def reader(self) -> Reader[Span, Tokens]:
        return _TokenReader(self._truncate)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, int64 `(documents,)`."""
        return np.concatenate([np.diff(each) for each in self._offsets])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens in the first file."""
        return np.dtype(self._tables[0].column.dtype)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def descriptor(self, index: int) -> Span:
        part = int(np.searchsorted(self._ends, index, "right"))
        number = index - int(self._begins[part])
        begin, end = self._offsets[part][number : number + 2].tolist()
        return Span(self._tables[part], begin, end - begin)

    def arrays(
        self, length: int | None = None, *, dtype: npt.DTypeLike = np.int32, pad: int = 0, mask: str | None = "mask"
    ) -> dict[str, ArraySpec]:
        """What `DataGroup(loader_arrays=...)` wants for padded batches.

        Args:
            length: places of a row; by default the tokens of the longest document.
            dtype: of the tokens in the batch.
            pad: what is behind a document.
            mask: name of the array, bool `(length,)`, that tells where tokens are; None for none.

        Returns:
            `tokens`, `(length,)`, which is padded when it is decoded, by a worker or on the device; and `length`, `()`.
        """
        places = at_least("length", int(self.lengths.max()) if length is None else length, 1)
        padded = PadRagged(splits="length", length=places, pad=pad, mask=mask)
        return {
            "tokens": ArraySpec((places,), dtype, dtype, decode=padded),
            "length": ArraySpec((), np.int32, np.int32),
        }


def _column(path: Path, dtype: npt.DTypeLike | None) -> NpyColumn:
    text = os.fsdecode(path)
    if text.endswith(".npy"):
        column = column_of(path)
        if len(column.shape) != 1:
            raise ValueError(f"{text}: got tokens of shape {column.shape}, wanted (n,)")
    else:
        if dtype is None:
            raise ValueError(f"{text}: a file of nothing but tokens does not say of what dtype they are: give dtype=")
        kind, file = np.dtype(dtype), identify(path)
        if file.size % kind.itemsize:
            raise ValueError(f"{text}: got {file.size:,} bytes, wanted a multiple of the {kind.itemsize} of {kind}")
        column = NpyColumn(file, 0, (file.size // kind.itemsize,), kind.str, False)
    if np.dtype(column.dtype).kind not in "iu":
        raise TypeError(f"{text}: got tokens of dtype {np.dtype(column.dtype)}, wanted integers")
    return column


def _offsets(given: Offsets, table: TokenTable) -> npt.NDArray[np.int64]:
    if isinstance(given, np.ndarray):
        found: npt.NDArray[Any] = given
    else:
        found = np.load(given, mmap_mode=None, allow_pickle=False)
    count = table.column.shape[0]
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise TypeError(
            f"{table}: got offsets of shape {found.shape} and dtype {found.dtype}, wanted (n + 1,) integers"
        )
    offsets = found.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"{table}: got offsets from {offsets[0]:,} to {offsets[-1]:,}, wanted ascending ones from 0 to the number "
            f"of tokens, {count:,}"
        )
    return offsets


def write_tokens(path: Path, documents: Iterable[npt.ArrayLike], dtype: npt.DTypeLike = np.uint16) -> TokenSource:
    """Writes documents for `TokenSource`: the tokens to `path`, and the offsets beside it.

    Args:
        path: of the tokens, ending in `.npy`; the offsets go to the same path with `.offsets.npy` in its place.
        documents: the tokens of each; they are gone through once, and not held.
        dtype: of the tokens in the file.

    Raises:
        ValueError: the path does not end in `.npy`, or a token is none that `dtype` can hold.

    Returns:
        The source of them.
    """
    text, kind = os.fsdecode(path), np.dtype(dtype)
    if not text.endswith(".npy"):
        raise ValueError(f"path: got {text!r}, wanted one that ends in .npy")
    if kind.kind not in "iu":
        raise TypeError(f"dtype: got {kind}, wanted integers")
    limits: Any = np.iinfo(kind.name)
    offsets = [0]
    beside = text.removesuffix(".npy") + ".offsets.npy"
    with open(f"{text}.partial", "wb") as stream:
        header = {"descr": kind.str, "fortran_order": False}
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (0,)})  # with room for a longer shape
        begin = stream.tell()
        for number, document in enumerate(documents):
            tokens = np.asarray(document)
            if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
                raise ValueError(f"document {number}: got {tokens.dtype} of shape {tokens.shape}, wanted (n,) integers")
            if tokens.size and (tokens.min() < limits.min or tokens.max() > limits.max):
                raise ValueError(
                    f"document {number}: got tokens from {tokens.min()} to {tokens.max()}, which {kind} cannot hold"
                )
            stream.write(tokens.astype(kind).tobytes())
            offsets.append(offsets[-1] + tokens.size)
        stream.seek(0)
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (offsets[-1],)})
        assert stream.tell() == begin
    np.save(beside, np.array(offsets, np.int64))
    os.replace(f"{text}.partial", text)
    return TokenSource(text, beside)


@final
class _OpenTokens:
    def __init__(self, table: TokenTable) -> None:
        column = table.column
        self.file = LocalFile(column.file)
        kind = np.dtype(column.dtype)
        end = column.offset + column.shape[0] * kind.itemsize
        self.tokens: Tokens = self.file.view()[column.offset : end].view(kind)


def _opened() -> Opened[TokenTable, _OpenTokens]:
    return Opened(_OpenTokens)


@final
class _TokenReader(Reader[Span, Tokens]):
    def __init__(self, truncate: bool) -> None:
        self._truncate = truncate
        self._begin()

    def _begin(self) -> None:
        self._opened = _opened()
        self._open_lock = threading.Lock()
        self._open_cut = 0

    def read_rows(self, items: Sequence[Span]) -> list[Tokens | BaseException]:
        return [_tokens(self._opened, item) for item in _checked(self._opened, items)]

    def fill_rows(self, items: Sequence[Span], arrays: Sequence[Arrays]) -> list[BaseException | None]:
        outcomes: list[BaseException | None] = []
        for tokens, row in zip(self.read_rows(items), arrays, strict=True):
            if isinstance(tokens, BaseException):
                outcomes.append(tokens)
                continue
            try:
                self._fill(tokens, row)
            except Exception as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        return outcomes

    def _fill(self, tokens: Tokens, arrays: Arrays) -> None:
        if set(arrays) != {"tokens", "length"}:
            raise KeyError(
                f"got the arrays {', '.join(arrays)}, wanted 'tokens' and 'length', as arrays() declares them"
            )
        places = len(arrays["tokens"])
        if len(tokens) > places:
            if not self._truncate:
                raise ValueError(
                    f"got a document of {len(tokens):,} tokens, wanted at most {places:,}: use truncate=True, or "
                    "PackedSource, which splits it"
                )
            tokens = tokens[:places]
            with self._open_lock:
                self._open_cut += 1
        _put(arrays["tokens"][: len(tokens)], tokens)
        arrays["length"][...] = len(tokens)

    def take_counts(self) -> dict[str, int] | None:
        if not self._open_cut:
            return None
        with self._open_lock:
            cut, self._open_cut = self._open_cut, 0
        return {"document cut to the length of a row (truncate=True)": cut}


def _checked(opened: Opened[TokenTable, _OpenTokens], spans: Sequence[Span]) -> list[Span | SourceError]:
    """The spans, or what is wrong with the files that they are in."""
    wrong: dict[int, SourceError | None] = {}
    for span in spans:
        if id(span.table) not in wrong:
            try:
                opened[span.table].file.check()
                wrong[id(span.table)] = None
            except SourceError as error:
                wrong[id(span.table)] = error
    return [wrong[id(span.table)] or span for span in spans]


def _tokens(opened: Opened[TokenTable, _OpenTokens], span: Span | SourceError) -> Any:
    if isinstance(span, SourceError):
        return span
    return opened[span.table].tokens[span.begin : span.begin + span.size]


def _put(places: Tokens, tokens: Tokens) -> None:
    np.copyto(places, tokens, casting="unsafe")
    if not np.can_cast(tokens.dtype, places.dtype) and not np.array_equal(places, tokens):
        raise ValueError(f"got tokens that {places.dtype} cannot hold")


# Packing.


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
        if not isinstance(getattr(documents, "reader", None), _TokenReader):
            raise TypeError(f"documents: got {type(documents).__name__}, wanted a TokenSource or a slice of one")
        self._documents = documents
        self._length = at_least("length", length, 1)
        self._pad = integer("pad", pad)
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
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts
        if not len(self):
            raise ValueError(f"got no row out of {self.report}; wanted at least one")
        report = self.report
        lost = report.truncated_tokens or report.dropped_documents
        _log.log(logging.WARNING if lost else logging.INFO, "packed: %s", report)

    @property
    def reader(self) -> Reader[PackedRow, dict[str, npt.NDArray[Any]]]:
        return _PackedReader(self._length, self._pad)

    @property
    def report(self) -> PackingReport:
        """What the packing of the first epoch came to."""
        return self._packings[0].report

    @property
    def reports(self) -> tuple[PackingReport, ...]:
        """The same, of every epoch."""
        return tuple(packing.report for packing in self._packings)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def descriptor(self, index: int) -> PackedRow:
        epoch = int(np.searchsorted(self._ends, index, "right"))
        packing, row = self._packings[epoch], index - int(self._begins[epoch])
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
        self._opened = _opened()
        self._open_places = np.arange(self._length, dtype=np.int32)

    def read_rows(self, items: Sequence[PackedRow]) -> list[dict[str, npt.NDArray[Any]] | BaseException]:
        values = [
            {name: np.empty(self._length, bool if name == "loss_mask" else np.int32) for name in _ARRAYS} for _ in items
        ]
        outcomes = self.fill_rows(items, values)
        return [value if outcome is None else outcome for value, outcome in zip(values, outcomes, strict=True)]

    def fill_rows(self, items: Sequence[PackedRow], arrays: Sequence[Arrays]) -> list[BaseException | None]:
        spans = [span for item in items for span in item.spans]
        checked = iter(_checked(self._opened, spans))
        outcomes: list[BaseException | None] = []
        for item, row in zip(items, arrays, strict=True):
            pieces = [_tokens(self._opened, next(checked)) for _ in item.spans]
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
                    _put(array[begin:end], tokens)
                elif name == "segment_ids":
                    array[begin:end] = segment
                elif name == "positions":
                    array[begin:end] = self._open_places[: len(tokens)]
                elif name == "loss_mask":
                    array[begin : end - 1] = True
                    array[end - 1] = False
                else:
                    _put(array[begin : end - 1], tokens[1:])
                    array[end - 1] = self._pad
            array[end:] = self._pad if name in ("tokens", "targets") else 0
