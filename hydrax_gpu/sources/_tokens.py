"""`TokenSource`: documents of tokens, one behind the other in mapped files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import at_least
from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.decode.ragged import PadRagged
from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._files import LocalFile, Opened, identify
from hydrax_gpu.sources._npy import NpyColumn, column_of
from hydrax_gpu.sources._source import Arrays, Parts, Reader, Source

__all__ = [
    "OpenTokens",
    "Span",
    "TokenReader",
    "TokenSource",
    "TokenTable",
    "checked",
    "put",
    "tokens_of",
    "write_tokens",
]

Path: TypeAlias = "str | os.PathLike[str]"
Tokens: TypeAlias = npt.NDArray[Any]
Offsets: TypeAlias = "Path | npt.NDArray[Any]"


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
        self._places = Parts(counts)
        self._reader = TokenReader(bool(truncate))
        if not len(self):
            raise ValueError(f"{self._tables[0]}: got no document, wanted at least one")

    @property
    def reader(self) -> Reader[Span, Tokens]:
        return self._reader

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, int64 `(documents,)`."""
        return np.concatenate([np.diff(each) for each in self._offsets])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens in the first file."""
        return np.dtype(self._tables[0].column.dtype)

    def __len__(self) -> int:
        return self._places.total

    def descriptor(self, index: int) -> Span:
        part, number = self._places.find(index)
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
class OpenTokens:
    """A file of tokens, mapped."""

    def __init__(self, table: TokenTable) -> None:
        column = table.column
        self.file = LocalFile(column.file)
        kind = np.dtype(column.dtype)
        end = column.offset + column.shape[0] * kind.itemsize
        self.tokens: Tokens = self.file.view()[column.offset : end].view(kind)


@final
class TokenReader(Reader[Span, Tokens]):
    """Reads spans of tokens."""

    def __init__(self, truncate: bool) -> None:
        self._truncate = truncate
        self._begin()

    def _begin(self) -> None:
        self._opened: Opened[TokenTable, OpenTokens] = Opened(OpenTokens)
        self._open_lock = threading.Lock()
        self._open_cut = 0

    def read_rows(self, items: Sequence[Span]) -> list[Tokens | BaseException]:
        return [tokens_of(self._opened, item) for item in checked(self._opened, items)]

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
        put(arrays["tokens"][: len(tokens)], tokens)
        arrays["length"][...] = len(tokens)

    def take_counts(self) -> dict[str, int] | None:
        if not self._open_cut:
            return None
        with self._open_lock:
            cut, self._open_cut = self._open_cut, 0
        return {"document cut to the length of a row (truncate=True)": cut}


def checked(opened: Opened[TokenTable, OpenTokens], spans: Sequence[Span]) -> list[Span | SourceError]:
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


def tokens_of(opened: Opened[TokenTable, OpenTokens], span: Span | SourceError) -> Any:
    """The tokens of a span, or what is wrong."""
    if isinstance(span, SourceError):
        return span
    return opened[span.table].tokens[span.begin : span.begin + span.size]


def put(places: Tokens, tokens: Tokens) -> None:
    """Copies tokens of one integer dtype to another, and raises ValueError if they do not fit."""
    np.copyto(places, tokens, casting="unsafe")
    if not np.can_cast(tokens.dtype, places.dtype) and not np.array_equal(places, tokens):
        raise ValueError(f"got tokens that {places.dtype} cannot hold")
