"""Tar archives, TFRecord and ArrayRecord: their indexes, what is damaged, and what is not what it should be."""

from __future__ import annotations

import gzip
import io
import logging
import struct
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hydrax_gpu import DataGroup, Dataloader, SourceError, sources
from hydrax_gpu.loaders import ImageLoader
from hydrax_gpu.sources import _records, _tar
from hydrax_gpu.sources._records import masked_crc32c
from hydrax_gpu.sources._sidecar import SUFFIX
from tests.source_files import fill_number, write_tar, write_tfrecord

NUMBER = {"y": ((), np.int32, np.int32)}
PAIRS = [(f"a/{i}.{end}", f"{end}{i}".encode()) for i in range(4) for end in ("txt", "bin")]


def contents(source: Any) -> list[dict[str, Any]]:
    return [source.load(i) for i in range(len(source))]


# Archives.


def test_members_of_a_key_are_a_sample_in_the_order_of_the_first(tmp_path: Path) -> None:
    members = [
        ("b/2.jpg", b"j2"), ("b/1.JPG", b"j1"), ("b/2.seg.png", b"s2"), ("./b/1.cls", b" 17\n"),
        ("b/.hidden.jpg", b"no"), ("b/__meta__.json", b"no"), ("b.x/2.json", b'{"a": [1]}'), ("b/2.txt", "ä".encode()),
    ]  # fmt: skip
    source = sources.TarSource(write_tar(tmp_path / "a.tar", members))
    assert source.extensions == {"jpg": 2, "cls": 1, "json": 1, "seg.png": 1, "txt": 1}
    assert contents(source) == [
        {"__key__": "b/2", "jpg": b"j2", "seg.png": b"s2", "txt": "ä"},
        {"__key__": "b/1", "jpg": b"j1"},
        {"__key__": "./b/1", "cls": 17},  # as its name says, another file
        {"__key__": "b.x/2", "json": {"a": [1]}},
    ]
    raw = sources.TarSource(tmp_path / "a.tar", fields={"t": "txt"}, decode=False)
    assert raw.load(0) == {"t": "ä".encode()}


def test_the_first_extension_that_there_is_is_taken_and_a_sample_without_is_a_bad_item(tmp_path: Path) -> None:
    members = [("0.png", b"p"), ("0.jpg", b"j"), ("1.png", b"q"), ("2.txt", b"t")]
    source = sources.TarSource(write_tar(tmp_path / "a.tar", members), fields={"image": "jpg png"})
    assert [source.load(0), source.load(1)] == [{"image": b"j"}, {"image": b"q"}]
    with pytest.raises(SourceError, match=r"a.tar: 2: it has no jpg or png for 'image', only txt"):
        source.load(2)
    with pytest.raises(ValueError, match="no extension for 'image'"):
        sources.TarSource(tmp_path / "a.tar", fields={"image": " "})


def test_pictures_of_an_archive_go_through_the_image_loader(tmp_path: Path) -> None:
    def jpeg(value: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.full((24, 24, 3), value, np.uint8)).save(stream, "JPEG", quality=95)
        return stream.getvalue()

    members = [(f"{i}.{end}", data) for i in range(6) for end, data in (("jpg", jpeg(40 * i)), ("cls", b"%d" % i))]
    members[4] = ("2.jpg", members[4][1][:60])  # and so is no picture any more
    source = sources.TarSource(write_tar(tmp_path / "a.tar", members), fields={"image": "jpg", "label": "cls"})
    images = ImageLoader(16, read=source.reader, labels={"label": ((), np.int32, np.int32)})
    group = DataGroup(2, source, loader_arrays=images.arrays())
    with Dataloader(images, group, executor="inline", end_at=("epoch", 1)) as loader:
        batches = list(loader)
    assert [batch.arrays["label"].tolist() for batch in batches] == [[0, 1], [4, 5]]
    means = [int(row.mean()) for batch in batches for row in batch.arrays["image"]]
    assert means == pytest.approx([0, 40, 160, 200], abs=2)
    assert [bad.item for bad in loader.report().bad] == [2]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=("C",)), min_size=1)


@given(
    st.dictionaries(st.tuples(names, names), st.binary(max_size=600), min_size=1, max_size=8),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@settings(max_examples=25)
def test_every_member_is_found_where_it_lies(files: dict[tuple[str, str], bytes], kind: int) -> None:
    members = {f"{'d' * 90}/{stem}.{end}": data for (stem, end), data in files.items()}
    expected: dict[str, dict[str, bytes]] = {}
    for name, data in members.items():
        folder, _, base = name.rpartition("/")
        stem, _, end = base.partition(".")
        if stem and not base.startswith("__"):
            sample = expected.setdefault(f"{folder}/{stem}", {})
            if end.lower() in sample:
                return  # two of one name, which is an error
            sample[end.lower()] = data
    if not expected:
        return
    with tempfile.TemporaryDirectory() as folder_name:
        path = write_tar(Path(folder_name) / "a.tar", members.items(), kind)
        for _ in range(2):  # indexed, and from the index
            source = sources.TarSource(path, decode=False)
            assert [(value.pop("__key__"), value) for value in contents(source)] == list(expected.items())


def test_an_index_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", PAIRS)
    first = contents(sources.TarSource(path))
    monkeypatch.setattr(_tar, "_index", lambda file: pytest.fail("it was indexed again"))
    assert contents(sources.TarSource(path)) == first
    monkeypatch.undo()
    write_tar(path, [*PAIRS, ("z.txt", b"new")])
    assert len(sources.TarSource(path)) == len(first) + 1


def test_a_damaged_index_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "a.tar", PAIRS)
    first = contents(sources.TarSource(path))
    index = tmp_path / f"a.tar{SUFFIX}"
    whole = index.read_bytes()
    damaged = 0
    for at in [*range(0, len(whole), 97), None]:
        index.write_bytes(whole[:-200] if at is None else whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        caplog.clear()
        assert contents(sources.TarSource(path)) == first
        damaged += "this index is damaged" in caplog.text
    # what is left is padding and fields of the zip file that nobody reads
    assert damaged > len(whole) / 97 / 2


def test_indexes_go_where_they_are_wanted_and_do_without_a_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "a.tar", [(f"{folder}.txt", folder.encode())])
    paths = [tmp_path / "one" / "a.tar", tmp_path / "two" / "a.tar"]
    source = sources.TarSource(paths, index_folder=tmp_path / "indexes")
    assert [value["txt"] for value in contents(source)] == ["one", "two"]
    assert len(list((tmp_path / "indexes").iterdir())) == 2
    assert len(list((tmp_path / "one").iterdir())) == 1
    (tmp_path / "file").write_text("")
    assert len(sources.TarSource(paths, index_folder=tmp_path / "file")) == 2
    assert "the index cannot be kept" in caplog.text and "index_folder" in caplog.text
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: gzip.compress(data), "compressed by gzip.*decompress it once"),
        (lambda data: b"no archive" * 200, "no tar archive"),
        (lambda data: data[:2048] + b"\1" * 512 + data[2560:], "the header at byte 2,048 is damaged"),
        (lambda data: data + data, "strung together"),
    ],
)
def test_what_is_no_sound_archive_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", PAIRS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=message):
        sources.TarSource(path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a.tar: 1.TXT: there are two members of this name"):
        sources.TarSource(write_tar(tmp_path / "a.tar", [("1.txt", b""), ("1.TXT", b"")]))


@pytest.mark.parametrize("end", [3 * 1024 + 512 + 3, 3 * 1024 + 512 + 700])
def test_the_end_of_a_truncated_archive_is_a_bad_item(
    end: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}.bin", bytes([i]) * 1000) for i in range(4)])
    # each has a header of 512 bytes and takes 1024 bytes
    path.write_bytes(path.read_bytes()[: 3 * 1536 + end - 3 * 1024])
    source = sources.TarSource(path)
    assert "it is truncated" in caplog.text
    assert [source.load(i)["bin"][0] for i in range(3)] == [0, 1, 2]
    with pytest.raises(SourceError, match=r"a.tar: 3.bin: it ends within an item: .* of 1,000 bytes"):
        source.load(3)


def test_shards_are_counted_out() -> None:
    assert _tar.expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert _tar.expand(["{9..10}/{0..1}", Path("b")]) == ["9/0", "9/1", "10/0", "10/1", "b"]
    with pytest.raises(ValueError, match="wanted ascending"):
        _tar.expand("{3..1}")
    with pytest.raises(ValueError, match="at least one"):
        _tar.expand([])


# Records.


def test_the_checksum_is_that_of_the_format() -> None:
    assert _records._crc32c_of_few(b"123456789") == 0xE3069283  # RFC 3720 has CRC-32C, and this its check value
    # a file with one empty record, as TensorFlow 2.21 writes it
    assert struct.pack("<QI", 0, masked_crc32c(bytes(8))).hex() == "000000000000000029039807"


def test_records_are_had_in_any_order_and_a_damaged_one_is_a_bad_item(tmp_path: Path) -> None:
    pytest.importorskip("google_crc32c", reason="google-crc32c is not installed")
    records = [b"%d" % i for i in range(12)]
    write_tfrecord(tmp_path / "a-0.tfrecord", records[:7])
    path = write_tfrecord(tmp_path / "a-1.tfrecord", records[7:])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"11", b"12"))
    for _ in range(2):  # indexed, and from the index
        source = sources.TFRecordSource(tmp_path / "a-{0..1}.tfrecord")
        group = DataGroup(3, source, loader_arrays=NUMBER, shuffle_first=True)
        with Dataloader(source.loader(fill_number), group, executor="inline", end_at=("epoch", 1)) as loader:
            batches = [(list(batch.indices), batch.arrays["y"].tolist()) for batch in loader]
        assert len(batches) == 3 and all(rows == values for rows, values in batches)
        [bad] = loader.report().bad
        assert bad.item == 11 and "its checksum is wrong" in bad.error
        assert not loader.report().fallbacks


def test_without_the_package_the_report_says_that_records_go_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.TFRecordSource(write_tfrecord(tmp_path / "a", [b"1", b"2", b"3", b"4"]))
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    _records._crc32c.cache_clear()
    group = DataGroup(2, source, loader_arrays=NUMBER)
    with Dataloader(source.loader(fill_number), group, executor="inline", end_at=("epoch", 1)) as loader:
        assert [batch.arrays["y"].tolist() for batch in loader] == [[1, 2], [3, 4]]
    assert loader.report().fallbacks == {"TFRecord not checked, for google-crc32c is not installed": 4}
    _records._crc32c.cache_clear()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: gzip.compress(data), "it is compressed"),
        (lambda data: b"X" + data[1:], "no TFRecord file"),
        (lambda data: data[:-1], "truncated: its last record, 1"),
        (lambda data: data[:19] + b"X" + data[20:], "the length at byte 18 is damaged"),
        (lambda data: data + b"123", "the length at byte 36 is damaged"),
        (lambda data: b"", "no record"),
    ],
)
def test_what_is_no_sound_file_of_records_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    path = write_tfrecord(tmp_path / "a", [b"10", b"11"])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=message):
        sources.TFRecordSource(path)


class FakeReader:
    """array-record's reader, over lines of text."""

    open = 0

    def __init__(self, path: str, options: str, file_reader_buffer_size: int) -> None:
        assert "readahead_buffer_size:0" in options
        self.lines = Path(path).read_bytes().splitlines()
        if not self.lines:
            raise RuntimeError("not an ArrayRecord")
        FakeReader.open += 1

    def num_records(self) -> int:
        return len(self.lines)

    def read(self, numbers: list[int]) -> list[bytes]:
        if any(self.lines[number] == b"bad" for number in numbers):
            raise RuntimeError("checksum mismatch")
        return [self.lines[number] for number in numbers]

    def close(self) -> None:
        FakeReader.open -= 1


def test_array_records_are_read_by_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("array_record.python.array_record_module")
    module.ArrayRecordReader = FakeReader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", module)
    (tmp_path / "0").write_bytes(b"0\n1\n2\n")
    (tmp_path / "1").write_bytes(b"3\nbad\n5\n")
    source = sources.ArrayRecordSource([tmp_path / "0", tmp_path / "1"])
    group = DataGroup(2, source, loader_arrays=NUMBER)
    with Dataloader(source.loader(fill_number), group, executor="inline", end_at=("epoch", 1)) as loader:
        assert [batch.arrays["y"].tolist() for batch in loader] == [[0, 1], [2, 3]]
    [bad] = loader.report().bad
    assert bad.item == 4 and "1: record 1: checksum mismatch" in bad.error
    (tmp_path / "2").write_bytes(b"")
    with pytest.raises(SourceError, match="no ArrayRecord file"):
        sources.ArrayRecordSource(tmp_path / "2")
    del source, group, loader, bad
    assert FakeReader.open == 0


def test_array_records_of_the_package_itself(tmp_path: Path) -> None:
    module = pytest.importorskip("array_record.python.array_record_module", reason="array-record is not installed")
    writer = module.ArrayRecordWriter(str(tmp_path / "a"), "group_size:1")
    for i in range(5):
        writer.write(b"%d" % i)
    writer.close()
    source = sources.ArrayRecordSource(tmp_path / "a")
    assert source.reader.read_rows([source[i] for i in (3, 0, 4)]) == [b"3", b"0", b"4"]


def test_a_missing_package_is_told_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for name in ("array_record.python.array_record_module", "fsspec.core", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    for make, extra in (
        (lambda: sources.ArrayRecordSource(tmp_path / "a"), "arrayrecord"),
        (lambda: sources.TarSource("s3://bucket/a.tar"), "remote"),
        (lambda: sources.ParquetSource(tmp_path / "a"), "parquet"),
    ):
        with pytest.raises(ImportError, match=rf"pip install 'hydrax-gpu\[{extra}\]'"):
            make()


def test_what_is_left_out_of_an_archive_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hydrax_gpu")
    sources.TarSource(write_tar(tmp_path / "a.tar", [("__x.txt", b""), ("1.txt", b"")]))
    assert "1 members are no samples' files" in caplog.text
