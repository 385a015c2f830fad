"""Small files of every kind that there is a source for, and what is in them. Workers import this module: no jax."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 23
"""Items in each: no multiple of anything, so that the last shard, row group and batch are not like the others."""


def numbers(count: int = COUNT) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`x`, float32 `(count, 6)`, and `y`, int32 `(count,)`: the items' own numbers, times three."""
    x = np.random.default_rng(5).random((count, 6), np.float32)
    return x, np.arange(count, dtype=np.int32) * 3


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """An archive of files, in the order given."""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_tfrecord(path: Path, records: list[bytes]) -> Path:
    """A file of records, as TensorFlow lays them out."""
    from hydrax_gpu.sources._records import masked_crc32c

    with path.open("wb") as stream:
        for data in records:
            head = struct.pack("<Q", len(data))
            stream.write(head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data)))
    return path


def npy_bytes(array: Any) -> bytes:
    """What numpy.save writes."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def make(kind: str, folder: Path) -> Any:
    """A source of `COUNT` items with `x` and `y`, in two files where it can be several."""
    from hydrax_gpu import sources

    x, y = numbers()
    half = COUNT // 2
    if kind == "npy":
        for name, array in (("x", x), ("y", y)):
            np.save(folder / f"{name}0.npy", array[:half])
            np.save(folder / f"{name}1.npy", array[half:])
        return sources.NpySource([{"x": folder / f"x{i}.npy", "y": folder / f"y{i}.npy"} for i in range(2)])
    if kind == "npz":
        np.savez(folder / "data.npz", x=x, y=y)
        return sources.NpySource(folder / "data.npz")
    if kind == "tar":
        for number, part in enumerate((range(half), range(half, COUNT))):
            members = [(f"set/{i:04d}.{end}", data) for i in part for end, data in item_files(x[i], y[i])]
            write_tar(folder / f"shard-{number}.tar", members)
        return sources.TarSource(folder / "shard-{0..1}.tar", fields={"x": "x.npy", "y": "cls"})
    if kind in ("parquet", "arrow", "arrow stream", "arrow compressed"):
        return make_table(kind, folder, x, y)
    raise AssertionError(kind)


TABLES = ("npy", "npz", "tar", "parquet", "arrow", "arrow stream", "arrow compressed")
"""Kinds whose items are `x` and `y`."""


def item_files(x: Any, y: Any) -> list[tuple[str, bytes]]:
    return [("x.npy", npy_bytes(x)), ("cls", str(int(y)).encode())]


def make_table(kind: str, folder: Path, x: Any, y: Any) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import ipc

    from hydrax_gpu import sources

    half = COUNT // 2
    paths: list[Path] = []
    for number, part in enumerate((slice(0, half), slice(half, None))):
        rows = pa.FixedSizeListArray.from_arrays(pa.array(x[part].ravel()), 6)
        table = pa.table({"x": rows, "y": y[part], "text": [f"text {i}" for i in y[part]]})
        paths.append(folder / f"part{number}.{kind.split()[0]}")
        if kind == "parquet":
            pq.write_table(table, paths[-1], row_group_size=5)
            continue
        options = ipc.IpcWriteOptions(compression="zstd" if "compressed" in kind else None)
        new = ipc.new_stream if "stream" in kind else ipc.new_file
        with new(paths[-1], table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=5)
    cls = sources.ParquetSource if kind == "parquet" else sources.ArrowSource
    return cls(paths, columns=["x", "y"])


# Loader functions of what was read.


def fill_and_tell_text(value: Any, arrays: Any, seed: int | None) -> dict[str, Any]:
    """As no function does, and returns the item's type."""
    arrays["x"][...] = value["x"]
    arrays["y"][...] = value["y"]
    return {"seed": seed}


def fill_number(value: bytes, arrays: Any, seed: int | None) -> None:
    """The number that a record is."""
    arrays["y"][...] = int(value)


class Squares:
    """A map-style data set: `(number, its square)`."""

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[int, int]:
        if number in self.bad:
            raise OSError(f"item {number} is not there")
        return number, number**2


class SquaresAtOnce(Squares):
    """The same, with the method for many that PyTorch and Grain know; it counts its calls in `calls`."""

    calls = 0

    def __getitems__(self, numbers: list[int]) -> list[tuple[int, int]]:
        type(self).calls += 1
        return [self[number] for number in numbers]
