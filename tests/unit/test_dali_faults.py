"""Bad files, and everything else that must not end a run with a DALI graph, hang it, or harm other items."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "nvidia.dali", exc_type=ImportError, reason="NVIDIA DALI cannot be imported here: it has no wheel for this platform"
)

from hydrax_gpu import DataGroup, Dataloader, ErrorPolicy, LoaderError
from hydrax_gpu.loaders import DaliLoader
from hydrax_gpu.loaders._dali_fields import check_image
from tests import dali_graphs as graphs
from tests.dali_pictures import encoded
from tests.small import loader

ARRAYS = {"image": ((16, 16, 3), np.uint8, np.uint8)}


def png_of_dimensions(height: int, width: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def flipped(data: bytes, where: int) -> bytes:
    """The same with the bits of one byte turned."""
    return data[:where] + bytes([data[where] ^ 0xFF]) + data[where + 1 :]


GOOD = encoded(3, height=96, width=128)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no picture, whatever its name says", "not an image that DALI can read"),
    "noise": (np.random.default_rng(0).bytes(1000), "not an image that DALI can read"),
    "header only": (GOOD[:100], "not an image that DALI can read"),
    "half": (GOOD[: len(GOOD) // 2], "Failed to decode"),
    "half a PNG": (encoded(3, "PNG")[:2000], ""),
    "bomb": (png_of_dimensions(60_000, 60_000), "60000 x 60000 pixels, more than max_pixels"),
    "absurd": (png_of_dimensions(0x7FFFFFF0, 0x7FFFFFF0), "pixels"),
    "no height": (png_of_dimensions(0, 10), ""),
    "wrong depth": (flipped(GOOD, GOOD.index(b"\xff\xc0") + 4), ""),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures, and one bad file of each kind."""
    path = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        (path / f"{number}.jpg").write_bytes(encoded(number, height=60, width=80))
    for name, (data, _) in BAD.items():
        (path / f"{name}.jpg").write_bytes(data)
    os.mkfifo(path / "pipe.jpg")
    os.mkdir(path / "folder.jpg")
    (path / "secret.jpg").symlink_to(path / "nowhere.jpg")
    return path


def paths(folder: Path, replaced: dict[int, str]) -> list[str]:
    return [str(folder / f"{replaced.get(number, number)}.jpg") for number in range(24)]


def rows(it: Dataloader[Any]) -> dict[int, bytes]:
    """Item → what its row held; of those that are not in another's place."""
    found: dict[int, bytes] = {}
    with it:
        for batch in it:
            images = np.asarray(batch.arrays["image"])
            for row, item in enumerate(batch.indices):
                if not batch.replaced[row]:
                    found[item] = images[row].tobytes()
            del batch, images
    return found


@pytest.fixture(scope="module")
def clean(folder: Path) -> dict[int, bytes]:
    return rows(loader(DaliLoader(graphs.decode), DataGroup(8, paths(folder, {}), loader_arrays=ARRAYS)))


def everything_bad() -> dict[int, str]:
    """All kinds of bad files, in two batches of three: the first items of a batch and the last are among them."""
    names = [*BAD, "pipe", "folder", "secret", "missing"]
    places = [0, 1, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 11]
    return dict(zip(places, names, strict=True))


@pytest.mark.parametrize(("executor", "count"), [("inline", 1), ("thread", 1), ("process", 2)])
def test_bad_files_are_found_and_the_others_of_their_batches_are_kept(
    folder: Path, clean: dict[int, bytes], executor: Any, count: int
) -> None:
    bad = everything_bad()
    data = paths(folder, bad)
    policy = ErrorPolicy(mode="replace", restarts=0)  # nothing dies of it
    it = loader(
        DaliLoader(graphs.decode, num_threads=2), DataGroup(8, data, loader_arrays=ARRAYS), executor=executor,
        loader_count=count, on_error=policy, end_at=("epoch", 2),
    )  # fmt: skip
    found = rows(it)
    assert found == {item: row for item, row in clean.items() if item not in bad}
    report = it.report()
    assert report.bad.items() == sorted(bad) and not report.worker_deaths
    assert min(item.count for item in report.bad) >= 2, "in the second epoch they are bad again"
    for item in report.bad:
        name = bad[item.item]
        assert f"{name}.jpg" in item.error, "the error names the file"
        expected = {"pipe": "named pipe", "folder": "directory", "secret": "No such file", "missing": "No such file"}
        assert expected[name] if name in expected else BAD[name][1] in item.error


def test_bad_files_do_not_change_what_is_drawn_for_the_others(folder: Path) -> None:
    def run(data: Any) -> dict[int, bytes]:
        load = DaliLoader(graphs.augment, fields=("image", "label"))
        return rows(loader(load, DataGroup(8, data, loader_arrays=PAIR, seed=4), on_error="replace"))

    clean = run(pairs(folder))
    bad = {0: "text", 5: "half", 17: "missing"}
    assert run(pairs(folder, bad)) == {item: row for item, row in clean.items() if item not in bad}


def test_a_batch_with_a_bad_file_is_left_out_by_default(folder: Path, clean: dict[int, bytes]) -> None:
    it = loader(DaliLoader(graphs.decode), DataGroup(8, paths(folder, {9: "half"}), loader_arrays=ARRAYS))
    assert rows(it) == {item: row for item, row in clean.items() if not 8 <= item < 16}
    assert it.report().bad.items() == [9]


def test_raising_ends_the_run_with_dalis_words_and_the_files_name(folder: Path) -> None:
    group = DataGroup(8, paths(folder, {9: "half"}), loader_arrays=ARRAYS)
    with pytest.raises(LoaderError) as caught:
        rows(loader(DaliLoader(graphs.decode), group, executor="process", on_error="raise"))
    text = str(caught.value)
    assert caught.value.item_index == 9 and f"{folder}/half.jpg: " in text
    assert "nvidia.dali.fn.decoders.image" in text and "dali_graphs.py" in text, "it names the operator and its line"
    assert "sample #0" not in text and "no longer valid" not in text, "what would mislead is left out"


def test_a_batch_in_which_everything_is_bad_is_no_more_than_that(folder: Path, clean: dict[int, bytes]) -> None:
    bad = dict.fromkeys(range(8, 16), "half")
    it = loader(DaliLoader(graphs.decode), DataGroup(8, paths(folder, bad), loader_arrays=ARRAYS))
    assert rows(it) == {item: row for item, row in clean.items() if item not in bad}
    assert it.report().bad.items() == list(range(8, 16))


class FailsOnce:
    """Reads a file, but the first time, in each process, it fails."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    def __call__(self, path: str) -> Any:
        if path.endswith(self.name) and not self.failed:
            self.failed = True
            raise ConnectionError("the file server is busy")
        return np.fromfile(path, np.uint8)


def test_an_item_that_fails_at_first_is_tried_again(folder: Path, clean: dict[int, bytes]) -> None:
    load = DaliLoader(graphs.decode, read={"data": FailsOnce("/9.jpg")})
    policy = ErrorPolicy(mode="raise", retries=1, backoff=0)
    it = loader(load, DataGroup(8, paths(folder, {}), loader_arrays=ARRAYS), executor="process", on_error=policy)
    assert rows(it) == clean


# Damaged headers.


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"])
def test_headers_of_good_images_pass(kind: str) -> None:
    check_image(np.frombuffer(encoded(0, kind), np.uint8), 48 * 64)
    with pytest.raises(ValueError, match=r"48 x 64 pixels, more than max_pixels=3,071"):
        check_image(np.frombuffer(encoded(0, kind), np.uint8), 48 * 64 - 1)


def mutants(seed: int, count: int, kinds: tuple[str, ...] = ("JPEG", "PNG")) -> list[bytes]:
    """Damaged images: cut off, bytes changed near the beginning or anywhere, a foreign end."""
    rng = np.random.default_rng(seed)
    originals = [encoded(number, kind) for number in range(3) for kind in kinds]
    originals.append(encoded(5, "JPEG", progressive=True))

    def cut(data: bytearray) -> bytearray:
        return data[: rng.integers(1, len(data))]

    def change_early(data: bytearray) -> bytearray:
        for where in rng.integers(0, min(len(data), 600), 4):
            data[where] ^= int(rng.integers(1, 256))
        return data

    def change_anywhere(data: bytearray) -> bytearray:
        for where in rng.integers(0, len(data), 20):
            data[where] ^= 0x5A
        return data

    def another_end(data: bytearray) -> bytearray:
        return data[: rng.integers(1, len(data))] + rng.bytes(200)

    ways: list[Callable[[bytearray], bytearray]] = [cut, change_early, change_anywhere, another_end]
    return [
        bytes(ways[rng.integers(len(ways))](bytearray(originals[rng.integers(len(originals))]))) for _ in range(count)
    ]


def test_hundreds_of_damaged_images_harm_no_worker_and_no_other_image(clean: dict[int, bytes], folder: Path) -> None:
    """Each batch has 6 of them among 10 good ones, which come out as if the bad ones were not there."""
    good = [(folder / f"{number}.jpg").read_bytes() for number in range(24)]
    bad = iter(mutants(1, 360))
    data = [next(bad) if number % 8 in (1, 4, 7) else good[number % 24] for number in range(960)]
    policy = ErrorPolicy(mode="replace", restarts=0)
    group = DataGroup(16, data, loader_arrays=ARRAYS)
    it = loader(DaliLoader(graphs.decode, num_threads=2), group, executor="process", on_error=policy)
    found = rows(it)
    for number in range(960):
        if number % 8 not in (1, 4, 7):
            assert found[number] == clean[number % 24]
    report = it.report()
    assert 150 < len(report.bad) < 360, "most of them are bad, others can be decoded all the same"
    assert not report.worker_deaths


def test_a_damaged_header_among_images_that_are_being_decoded_ends_no_process() -> None:
    """What `check_image` is there for: without it, this ends workers by SIGSEGV."""
    large = encoded(1, height=600, width=800, quality=95)
    data = [b"no image at all" * 50 if number % 32 == 12 else large for number in range(256)]
    policy = ErrorPolicy(mode="replace", restarts=0)
    it = loader(
        DaliLoader(graphs.decode), DataGroup(32, data, loader_arrays=ARRAYS), executor="process", on_error=policy
    )
    found = rows(it)
    assert len(found) == 256 - 8 and len(set(found.values())) == 1
    assert it.report().bad.items() == list(range(12, 256, 32))


def test_images_that_are_no_fields_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    def graph(sample: Any) -> Any:
        from nvidia.dali import fn

        return fn.resize(fn.decoders.image(sample.data + np.uint8(0)), size=(16, 16))

    load = DaliLoader(graph)
    rows(loader(load, DataGroup(2, [GOOD, GOOD], loader_arrays=ARRAYS)))
    assert sum("their headers cannot be checked before" in record.getMessage() for record in caplog.records) == 1


# A user's own pipeline.

PAIR = {"image": ((24, 32, 3), np.uint8, np.uint8), "label": ((), np.int64, np.int32)}
WIRING: dict[str, Any] = {
    "inputs": {"jpegs": "image", "labels": "label"},
    "outputs": ("image", "label"),
    "fields": ("image", "label"),
}


def pairs(folder: Path, bad: dict[int, str] | None = None) -> list[tuple[str, int]]:
    return [(path, number) for number, path in enumerate(paths(folder, bad or {}))]


@pytest.mark.parametrize("what", ["object", "function"])
@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_pipeline_is_taken_as_it_is(folder: Path, what: str, executor: Any) -> None:
    pipeline: Any = graphs.plain_pipeline
    if what == "object":  # which takes batches of 5 at most; those of the group have 8
        pipeline = graphs.plain_pipeline(batch_size=5, num_threads=1, device_id=None, prefetch_queue_depth=1)

    def run(load: DaliLoader, data: Any, **options: Any) -> dict[int, bytes]:
        it = loader(load, DataGroup(8, data, loader_arrays=PAIR), executor=executor, **options)
        found = rows(it)
        assert it.report().bad.items() == [4] * (data[4][0].endswith("half.jpg"))
        return found

    clean = run(DaliLoader(decode_pair, fields=("image", "label")), pairs(folder), on_error="raise")
    assert run(DaliLoader.from_pipeline(pipeline, **WIRING), pairs(folder), on_error="raise") == clean
    found = run(DaliLoader.from_pipeline(pipeline, **WIRING), pairs(folder, {4: "half"}), on_error="replace")
    assert found == {item: row for item, row in clean.items() if item != 4}


def decode_pair(sample: Any) -> dict[str, Any]:
    """The graph of `plain_pipeline`."""
    return {"image": graphs.decode_field(sample), "label": sample.label}


def test_what_is_random_in_a_pipeline_is_warned_about(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load = DaliLoader.from_pipeline(graphs.random_pipeline, **WIRING)
    rows(loader(load, DataGroup(8, pairs(folder), loader_arrays=PAIR), on_error="raise"))
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in texts if "a state of their own (random.Uniform)" in text] == texts and len(texts) == 1


@pytest.mark.parametrize(
    ("pipeline", "wiring", "text"),
    [
        (graphs.reading_pipeline, {}, r"the pipeline reads data by itself (readers.File)"),
        (
            graphs.plain_pipeline,
            {"outputs": ("image",)},
            "outputs=('image',), but the declared arrays are image, label",
        ),
        (graphs.plain_pipeline, {"inputs": ("jpegs", "labels")}, "inputs: the items have no field 'jpegs', 'labels'"),
    ],
)
def test_pipelines_that_do_not_fit_are_told(folder: Path, pipeline: Any, wiring: Any, text: str) -> None:
    load = DaliLoader.from_pipeline(pipeline, **(WIRING | wiring))
    with pytest.raises(LoaderError) as caught:
        rows(loader(load, DataGroup(8, pairs(folder), loader_arrays=PAIR), on_error="raise"))
    assert text in str(caught.value)


def test_arguments_of_from_pipeline_that_do_not_fit_are_told() -> None:
    with pytest.raises(TypeError, match="pipeline: got int, wanted a Pipeline or a function"):
        DaliLoader.from_pipeline(3, **WIRING)
    with pytest.raises(TypeError, match="inputs: got 'jpegs', wanted a sequence of names"):
        DaliLoader.from_pipeline(graphs.plain_pipeline, **(WIRING | {"inputs": "jpegs"}))
    with pytest.raises(TypeError, match=r"outputs: got \(\), wanted a sequence of names"):
        DaliLoader.from_pipeline(graphs.plain_pipeline, **(WIRING | {"outputs": ()}))
