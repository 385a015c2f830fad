"""`TarSource`: samples in tar archives, as WebDataset lays them out, in any order."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, NamedTuple, TypeAlias, cast, final

import numpy as np

from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._files import FileId, Opened, OpenFile, RemoteFile, identify, open_file, ranges
from hydrax_gpu.sources._sidecar import Index, indexed
from hydrax_gpu.sources._source import Parts, Reader, Source

__all__ = ["Member", "Sample", "TarSource", "expand"]

_log = logging.getLogger("hydrax_gpu")

_VERSION = 1
_BLOCK = 512

Path: TypeAlias = "str | os.PathLike[str]"


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        extension: what is behind the first dot of its name, in small letters, such as `jpg` or `seg.png`.
        offset: of its first byte in the archive.
        size: bytes.
    """

    extension: str
    offset: int
    size: int


class Sample(NamedTuple):
    """Descriptor of a sample: the members of an archive that have all but the extension in common.

    Attributes:
        file: the archive.
        key: what they have in common: the path, up to the first dot of its last part.
        members: in the order of the archive.
    """

    file: FileId
    key: str
    members: tuple[Member, ...]


@final
class TarSource(Source[Sample, "dict[str, Any]"]):
    """Samples of tar archives (shards), as WebDataset lays them out: files whose names differ in the extension alone.

    Each archive is indexed once, by reading through its headers, and the index is kept beside it: from then on, any
    sample is had by reads at known places, in any order. The order of the samples is that of the shards, and in a shard
    that of their first members. Members of one key belong together wherever they are. What is no file, and names that
    begin with a dot or with two underscores, are left out.

    The value of an item is a dict, of its members by extension and its key under `__key__`; or, with `fields`, of these
    alone. `cls`, `cls2`, `index`, `inx` and `id` become an int, `txt`, `text` and `transcript` text, `json` what is in
    it, `npy` an array (no Python objects); everything else, bytes.

    Args:
        shards: an archive or several; `{000..146}` in a name stands for all these numbers. URLs of fsspec will do.
        fields: `{name: extensions}`, the names by which the members are wanted, each with one extension or several,
            `"jpg jpeg png"`, of which the first that a sample has is taken. A sample that has none is a bad item.
        decode: whether members become what their extension says; otherwise all are bytes.
        index_folder: where the indexes are kept; by default beside the archives, and for remote ones nowhere.

    Raises:
        OSError: an archive is not there.
        SourceError: one is no tar archive, is compressed, damaged, or has two members of one name.
    """

    def __init__(
        self,
        shards: Path | Iterable[Path],
        *,
        fields: Mapping[str, str] | None = None,
        decode: bool = True,
        index_folder: Path | None = None,
    ) -> None:
        paths = expand(shards)
        self._files = [identify(path) for path in paths]
        self._reader = _TarReader(fields, decode)
        shard_of: list[Index] = [indexed(file, "tar", _VERSION, _index, index_folder) for file in self._files]
        self._indexes = [_Shard(index) for index in shard_of]
        counts = [len(shard) for shard in self._indexes]
        self._places = Parts(counts)
        if not len(self):
            raise SourceError(paths[0], f"got no sample in {len(paths)} archives, wanted at least one")

    @property
    def reader(self) -> Reader[Sample, dict[str, Any]]:
        return self._reader

    @property
    def extensions(self) -> dict[str, int]:
        """How many members there are of each extension, the most common first."""
        counts: dict[str, int] = {}
        for shard in self._indexes:
            for name, count in zip(shard.extensions, shard.extension_counts(), strict=True):
                counts[name] = counts.get(name, 0) + count
        return dict(sorted(counts.items(), key=lambda each: -each[1]))

    def __len__(self) -> int:
        return self._places.total

    def descriptor(self, index: int) -> Sample:
        part, number = self._places.find(index)
        key, members = self._indexes[part].sample(number)
        return Sample(self._files[part], key, members)

    def __repr__(self) -> str:
        return f"TarSource({len(self)} samples in {len(self._files)} archives)"


def expand(shards: Path | Iterable[Path]) -> list[str]:
    """Paths, with `{000..146}` written out.

    Raises:
        ValueError: there is none, or the numbers of a range descend.
    """
    given = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    paths = [each for path in given for each in _braces(os.fsdecode(path))]
    if not paths:
        raise ValueError("shards: got none, wanted at least one path")
    return paths


def _braces(path: str) -> list[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if found is None:
        return [path]
    first, last = found.groups()
    if int(first) > int(last):
        raise ValueError(f"{path}: got numbers from {first} to {last}, wanted ascending ones")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    before, rest = path[: found.start()], _braces(path[found.end() :])
    return [f"{before}{number:0{width}d}{after}" for number in range(int(first), int(last) + 1) for after in rest]


# The index of an archive.


@final
class _Shard:
    """The samples of an archive: five arrays, and no object for each."""

    def __init__(self, index: Index) -> None:
        # Memory views, because a number out of an array costs five times as much.
        self._begins = index["begins"].data  # of each sample, and the end of the last, in the members
        self._key_begins = index["key_begins"].data
        self._keys = index["keys"].tobytes()
        self._offsets, self._sizes = index["offsets"].data, index["sizes"].data
        self._extension = index["extension"].data
        self.extensions: list[str] = json.loads(index["extensions"].tobytes())

    def __len__(self) -> int:
        return len(self._begins) - 1

    def extension_counts(self) -> list[int]:
        return np.bincount(np.asarray(self._extension), minlength=len(self.extensions)).tolist()

    def sample(self, number: int) -> tuple[str, tuple[Member, ...]]:
        key = self._keys[self._key_begins[number] : self._key_begins[number + 1]]
        members = [
            Member(self.extensions[self._extension[i]], self._offsets[i], self._sizes[i])
            for i in range(self._begins[number], self._begins[number + 1])
        ]
        return key.decode(errors="surrogateescape"), tuple(members)


def _index(file: FileId) -> Index:
    """Reads through the headers of an archive."""
    handle = open_file(file)
    stream = cast("IO[bytes]", handle.open()) if isinstance(handle, RemoteFile) else open(file.path, "rb")  # noqa: SIM115
    with stream:
        samples = _samples(file, stream)
    handle.check()
    extensions = sorted({member.extension for members in samples.values() for member in members})
    number = {name: i for i, name in enumerate(extensions)}
    if len(extensions) > 1 << 16:
        raise SourceError(file.path, f"it has {len(extensions):,} extensions, wanted names like key.jpg and key.cls")
    members = [member for sample in samples.values() for member in sample]
    keys = [key.encode(errors="surrogateescape") for key in samples]
    return {
        "begins": np.cumsum([0, *map(len, samples.values())]),
        "key_begins": np.cumsum([0, *map(len, keys)]),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "offsets": np.array([member.offset for member in members], np.int64),
        "sizes": np.array([member.size for member in members], np.int64),
        "extension": np.array([number[member.extension] for member in members], np.uint16),
        "extensions": np.frombuffer(json.dumps(extensions).encode(), np.uint8),
    }


def _samples(file: FileId, stream: IO[bytes]) -> dict[str, list[Member]]:
    samples: dict[str, list[Member]] = {}
    skipped = 0
    try:
        archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115
        for info in _members(archive, file):
            folder, slash, name = info.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not info.isreg() or info.issparse() or not stem or name.startswith("__"):
                skipped += not info.isdir()
                continue
            members = samples.setdefault(f"{folder}{slash}{stem}", [])
            member = Member(extension.lower(), info.offset_data, info.size)
            if any(other.extension == member.extension for other in members):
                raise SourceError(f"{file.path}: {info.name}", "there are two members of this name, wanted one of each")
            members.append(member)
    except tarfile.TarError as error:
        raise SourceError(file.path, _what_it_is(stream, error)) from error
    if skipped:
        _log.info("%s: %d members are no samples' files, and are left out", file.path, skipped)
    return samples


def _members(archive: tarfile.TarFile, file: FileId) -> Iterable[tarfile.TarInfo]:
    """All members, where tarfile itself ends without a word at a header that is damaged."""
    end = 0
    try:
        while (info := archive.next()) is not None:
            end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would keep them all
            yield info
    except tarfile.ReadError as error:
        if not end:
            raise
        if end <= file.size:
            raise SourceError(file.path, f"it is damaged behind byte {end:,} ({error}), {_lost(file, end)}") from error
    if end > file.size or file.size - end < _BLOCK:
        if end != file.size:  # what is cut off stays in the index, and is a bad item when it is due
            _log.warning("%s: it is truncated; what is missing cannot be read", file.path)
        return
    stream = cast("IO[bytes]", archive.fileobj)
    stream.seek(end)
    if any(stream.read(_BLOCK)):
        raise SourceError(file.path, f"the header at byte {end:,} is damaged, {_lost(file, end)}")
    while rest := stream.read(1 << 20):
        if any(rest):
            raise SourceError(
                file.path,
                f"there is more behind the mark at byte {end:,} that ends it: archives that were strung together? Give "
                "each of them as a shard",
            )


def _lost(file: FileId, end: int) -> str:
    return f"and with it whatever is behind it, {file.size - end:,} bytes"


def _what_it_is(stream: IO[bytes], error: Exception) -> str:
    stream.seek(0)
    head = stream.read(6)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    for magic, kind in kinds.items():
        if head.startswith(magic):
            return (
                f"it is compressed by {kind}, so that nothing in it can be had alone: decompress it once (pictures do "
                "not become smaller by it)"
            )
    return f"it is no tar archive ({error})"


# Reading samples.


def _int(data: bytes) -> int:
    return int(data)


def _text(data: bytes) -> str:
    return data.decode()


def _array(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), _int),
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    "json": json.loads,
    "npy": _array,
}


@final
class _TarReader(Reader[Sample, "dict[str, Any]"]):
    def __init__(self, fields: Mapping[str, str] | None, decode: bool) -> None:
        self._decode = decode
        self._fields: dict[str, tuple[str, ...]] | None = None
        if fields is not None:
            self._fields = {name: tuple(text.lower().split()) for name, text in fields.items()}
            for name, extensions in self._fields.items():
                if not extensions:
                    raise ValueError(f"fields: got no extension for {name!r}, wanted some, such as 'jpg jpeg png'")
        self._begin()

    def _begin(self) -> None:
        self._opened: Opened[FileId, OpenFile] = Opened(open_file)

    def read_rows(self, items: Sequence[Sample]) -> list[dict[str, Any] | BaseException]:
        chosen: list[list[tuple[str, Member]] | BaseException] = []
        wanted: list[tuple[FileId, int, int]] = []
        for item in items:
            try:
                fields = self._choose(item)
            except SourceError as error:
                chosen.append(error)
                continue
            chosen.append(fields)
            wanted += [(item.file, member.offset, member.size) for _, member in fields]
        parts = iter(ranges(self._opened, wanted))
        return [self._value(item, fields, parts) for item, fields in zip(items, chosen, strict=True)]

    def _choose(self, item: Sample) -> list[tuple[str, Member]]:
        if self._fields is None:
            return [(member.extension, member) for member in item.members]
        present = {member.extension: member for member in item.members}
        found: list[tuple[str, Member]] = []
        for name, extensions in self._fields.items():
            member = next((present[each] for each in extensions if each in present), None)
            if member is None:
                raise SourceError(
                    f"{item.file.path}: {item.key}",
                    f"it has no {' or '.join(extensions)} for {name!r}, only {', '.join(present)}",
                )
            found.append((name, member))
        return found

    def _value(self, item: Sample, fields: list[tuple[str, Member]] | BaseException, parts: Any) -> Any:
        if isinstance(fields, BaseException):
            return fields
        value: dict[str, Any] = {} if self._fields is not None else {"__key__": item.key}
        failure: BaseException | None = None
        for name, member in fields:
            data = next(parts)  # of every member, also when one is bad
            if isinstance(data, BaseException):
                failure = failure or SourceError(f"{item.file.path}: {item.key}.{member.extension}", _reason(data))
                if isinstance(data, SourceError) and type(data) is not SourceError:
                    failure = data
                continue
            decoder = _DECODERS.get(member.extension.rpartition(".")[2]) if self._decode else None
            try:
                value[name] = data if decoder is None else decoder(data)
            except Exception as error:
                failure = failure or SourceError(
                    f"{item.file.path}: {item.key}.{member.extension}", f"{type(error).__name__}: {error}"
                )
        return value if failure is None else failure


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, SourceError) else str(error)
