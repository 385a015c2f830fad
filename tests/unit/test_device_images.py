"""Pictures that a device decodes, on the fake device, whose decoder is the CPU's: so they are equal to the bit."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import (
    ArraySpec,
    BatchTimeoutError,
    DataGroup,
    Dataloader,
    ErrorPolicy,
    LoaderError,
    Normalize,
    PadRagged,
)
from hydrax_gpu._kernels import sources
from hydrax_gpu._kernels.resize_crop_flip_normalize import Box, Item, Turn
from hydrax_gpu._mem.encoded import FILE, HEAD, PIXELS, Encoded, PictureRows, Record, with_encoded, write
from hydrax_gpu._place import pictures as decoding
from hydrax_gpu._spec import Layout
from hydrax_gpu.loaders import ImageLoader
from hydrax_gpu.testing import FakeDevice
from tests import image_files as pictures
from tests.gpu.pictures import (
    LABELS,
    LOADERS,
    ROWS,
    Run,
    check_damaged,
    check_like_the_cpu,
    check_resizer,
    compare,
    damaged,
    on_the_cpu,
    photographs,
    run,
)


def same(got: Run, wanted: Run) -> bool:
    """Whether two runs had the same rows, to the bit."""
    return got.rows == wanted.rows and all(np.array_equal(a, b) for a, b in zip(got.images, wanted.images, strict=True))


def random_crop() -> ImageLoader:
    return LOADERS["random crop"]()


@pytest.mark.parametrize("kind", LOADERS)
def test_rows_are_those_of_the_cpu_to_the_bit(kind: str) -> None:
    decibels = check_like_the_cpu(kind, FakeDevice().in_use())
    assert min(decibels) == 99.0


@pytest.mark.parametrize("executor", ["process", "inline"])
def test_every_executor_leaves_files_to_the_device(executor: str) -> None:
    device = FakeDevice()
    got = run(random_crop(), photographs(), device.in_use(), executor=executor, loader_count=1)
    assert same(got, on_the_cpu(random_crop(), photographs()))
    assert len(device.pictures) == 2 * len(photographs())
    assert got.report.pictures == "a fake device" and "decoded by a fake device" in str(got.report)


@pytest.mark.parametrize("remainder", ["drop", "pad", "short"])
def test_batches_that_are_not_full(remainder: str) -> None:
    device = FakeDevice()
    got = run(random_crop(), photographs(), device.in_use(), size=7, remainder=remainder)
    assert same(got, on_the_cpu(random_crop(), photographs(), size=7, remainder=remainder))
    assert len(device.pictures) == 2 * (21 if remainder == "drop" else 24), "what repeats others is not decoded again"


def test_without_the_host_library_the_twin_makes_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydrax_gpu import testing
    from hydrax_gpu._kernels.choice import Choice

    wanted = {kind: on_the_cpu(LOADERS[kind](), photographs()[:8], epochs=1) for kind in LOADERS}
    monkeypatch.setattr(testing, "choose", lambda: Choice(None, "it is left out by a test"))
    for kind, expected in wanted.items():
        device = FakeDevice()
        device.refuses = lambda data: None
        got = run(LOADERS[kind](), photographs()[:8], device.in_use(), epochs=1)
        assert got.rows == expected.rows
        # Pillow decodes here, and it decodes JPEG by the same library
        assert min(compare(LOADERS[kind](), got, expected)) > 45, kind


# Only what is needed.


def test_no_more_than_the_part_that_the_crop_touches_is_decoded_and_no_pixels_are_copied() -> None:
    device = FakeDevice()
    load = ImageLoader(64, labels=LABELS)
    image = pictures.photograph(400, 300)
    run(load, [(pictures.encoded(image), number) for number in range(20)], device.in_use())
    areas = [picture.width * picture.height for picture in device.pictures]
    assert len(areas) == 40 and max(areas) <= 400 * 300
    assert np.mean(areas) < 0.65 * 400 * 300, "the mean of a random crop's area is 54 %"
    assert all(nbytes < 64 * 64 * 3 for _, _, nbytes in device.copies), "no row of pixels"


def test_scratch_memory_is_taken_once_and_grows_seldom() -> None:
    device = FakeDevice()
    taken: list[int] = []
    allocate = device.allocate

    def counted(nbytes: int, owner: Any) -> Any:
        taken.append(nbytes)
        return allocate(nbytes, owner)

    device.allocate = counted  # type: ignore[method-assign]
    assert same(run(random_crop(), photographs(), device.in_use(), epochs=6),
                on_the_cpu(random_crop(), photographs(), epochs=6))  # fmt: skip
    assert 2 <= len(taken) <= 5, "the ring's slots, and scratch memory"
    del device
    gc.collect()


def test_a_batch_of_large_pictures_is_decoded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "GROUP_BYTES", 30_000)
    assert same(run(random_crop(), photographs(), FakeDevice().in_use()), on_the_cpu(random_crop(), photographs()))


def test_where_the_device_has_no_memory_for_a_picture_a_worker_decodes_it() -> None:
    ring = 3 * (5 * 64 * 80 * 3 + 4096)
    # Beside the ring there is less than the MiB in which scratch memory is taken; of XLA's it is taken as it is needed,
    # which is 20 to 100 KB for a picture of the tests'.
    device = FakeDevice(memory=(256 << 20) + ring, xla_memory=60_000)
    allocate = device.allocate

    def limited(nbytes: int, owner: Any) -> Any:
        if owner == "device" and nbytes % (1 << 20) == 0:
            raise MemoryError("it is full")
        return allocate(nbytes, owner)

    device.allocate = limited  # type: ignore[method-assign]
    got = run(random_crop(), photographs(), device.in_use())
    assert same(got, on_the_cpu(random_crop(), photographs()))
    assert any("has no memory to decode it" in line for line in got.report.fallbacks), got.report.fallbacks
    assert device.pictures, "those that were small enough"


def test_a_part_that_is_too_large_is_a_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_MOST_BYTES", 20_000)
    device = FakeDevice()
    got = run(random_crop(), photographs(), device.in_use())
    assert same(got, on_the_cpu(random_crop(), photographs()))
    assert all(picture.width * picture.height * 3 <= 20_000 for picture in device.pictures)
    assert any("decodes no part of more than" in line for line in got.report.fallbacks)


# What a device does not decode.


@pytest.mark.parametrize("executor", ["thread", "process", "inline"])
def test_what_the_device_refuses_a_worker_decodes(executor: str) -> None:
    device = FakeDevice()
    kept = {data for data, number in photographs() if number % 3}
    device.refuses = lambda data: None if data in kept else "it does not like it"
    got = run(random_crop(), photographs(), device.in_use(), executor=executor, loader_count=1)
    assert same(got, on_the_cpu(random_crop(), photographs()))
    line = "a fake device could not decode a file (it does not like it), a worker does"
    # of the items in the rows, repetitions that pad a batch left out
    assert got.report.fallbacks == {line: 2 * 8}
    assert len(device.pictures) == 2 * 16, "the others are not decoded again"


@pytest.mark.parametrize("mode", ["drop", "replace"])
def test_damaged_files_are_bad_items_as_on_the_cpu(mode: str) -> None:
    got = check_damaged(mode, FakeDevice().in_use())
    wanted = on_the_cpu(random_crop(), damaged(), on_error=mode)
    assert same(got, wanted)
    assert [(bad.item, bad.error, bad.count) for bad in got.report.bad] == [
        (bad.item, bad.error, bad.count) for bad in wanted.report.bad
    ]
    assert got.report.dropped_batches == wanted.report.dropped_batches


def test_a_damaged_file_ends_the_run_if_the_policy_says_so() -> None:
    with pytest.raises(LoaderError, match=r"bytes in memory") as caught:
        run(random_crop(), damaged(), FakeDevice().in_use(), on_error="raise")
    assert caught.value.item_index in (3, 8, 12)


def test_a_bad_item_is_tried_again_and_with_a_policy_of_retries() -> None:
    device = FakeDevice()
    got = run(random_crop(), damaged(), device.in_use(), on_error=ErrorPolicy(mode="replace", retries=1, backoff=0))
    assert {bad.item for bad in got.report.bad} == {3, 8, 12}
    assert all("tried 2 times" in bad.error for bad in got.report.bad)


def test_what_is_no_ordinary_jpeg_or_too_large_never_gets_there() -> None:
    image = pictures.photograph()
    items = [
        (pictures.encoded(image), 0),
        (pictures.encoded(image, "PNG"), 1),
        (pictures.encoded(image.convert("CMYK")), 2),
        (pictures.encoded(image, comment=b"x" * 60_000) + bytes(10_000), 3),
    ]
    device = FakeDevice()
    load = ImageLoader(32, labels=LABELS)
    got = run(load, items, device.in_use(), size=4)
    assert same(got, on_the_cpu(ImageLoader(32, labels=LABELS), items, size=4))
    assert len(device.pictures) == 2
    begin = "a worker decoded a picture that a device was to decode: "
    found = {line.removeprefix(begin): count for line, count in got.report.fallbacks.items() if line.startswith(begin)}
    assert found == {
        "it is no JPEG file": 2,
        "it is a JPEG file of a rare kind (CMYK, 12 bits, arithmetic or lossless coding)": 2,
        f"its file is larger than encoded_bytes allows ({-(-(65536 + HEAD) // 256) * 256 - HEAD:,})": 2,
    }


def test_an_icc_profile_that_is_to_be_honoured_is_a_workers() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    items = [(pictures.encoded(pictures.photograph(), icc_profile=profile), 0)]
    device = FakeDevice()
    got = run(ImageLoader(32, srgb=True, labels=LABELS), items, device.in_use(), size=1)
    assert not device.pictures and "it has an ICC profile" in str(got.report.fallbacks)
    run(ImageLoader(32, labels=LABELS), items, device.in_use(), size=1)
    assert device.pictures


def test_nothing_is_left_to_a_device_that_is_not_asked_for() -> None:
    for options in ({"delivery": "copy"}, {"delivery": "auto"}):
        device = FakeDevice()
        got = run(random_crop(), photographs(), device.in_use(), **options)
        assert not device.pictures and not got.report.pictures
    device = FakeDevice()
    got = run(ImageLoader((64, 80), labels=LABELS, encoded_bytes=0), photographs(), device.in_use())
    assert not device.pictures and not got.report.pictures and not got.report.fallbacks
    wanted = on_the_cpu(random_crop(), photographs())
    assert same(got, wanted)
    assert got.report.memory_bytes <= wanted.report.memory_bytes, "and no memory is taken for it"
    with pytest.raises(ValueError, match="encoded_bytes: got -1"):
        ImageLoader(8, encoded_bytes=-1)


def test_without_the_library_workers_decode_and_a_note_says_why(caplog: pytest.LogCaptureFixture) -> None:
    device = FakeDevice()
    device.decoder_error = "nvImageCodec cannot be imported: pip install 'hydrax-gpu[cuda12]'"
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        got = run(random_crop(), photographs(), device.in_use())
    assert same(got, on_the_cpu(random_crop(), photographs()))
    (note,) = got.report.notes
    assert note.startswith("workers decode the files, and not a fake device: ImportError: nvImageCodec")
    assert caplog.text.count("pip install 'hydrax-gpu[cuda12]'") == 1


def test_what_is_cached_as_it_is_loaded_is_decoded_by_workers(tmp_path: Path) -> None:
    """The cache holds the rows that workers write: pixels, and not files."""
    wanted = on_the_cpu(random_crop(), photographs())
    for again in (False, True):
        device, load = FakeDevice(), random_crop()
        group = DataGroup(
            5, photographs(), loader_arrays=load.arrays(), seed=5, shuffle_first=True, remainder="pad",
            cache_location=tmp_path / "cache", cache_readonly=again,
        )  # fmt: skip
        rows: list[np.ndarray[Any, Any]] = []
        with device.in_use(), Dataloader(load, group, end_at=("epoch", 1), executor="thread", delivery="alias") as it:
            for batch in it:
                rows += list(np.array(batch.arrays["image"]))
                del batch
        assert not device.pictures
        assert all(np.array_equal(a, b) for a, b in zip(rows, wanted.images[: len(rows)], strict=True))
        (cache,) = it.report().caches
        assert cache.kind == "direct" and (cache.hits > 0) == again


# With declared decodes.


def test_a_decode_of_the_pictures_array_comes_after() -> None:
    load = random_crop()
    spec = ArraySpec((64, 80, 3), np.uint8, jnp.bfloat16, Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.3), 255, "HWC->CHW"))
    arrays = {"image": spec, **LABELS}
    device = FakeDevice()
    got = run(load, photographs(), device.in_use(), arrays=arrays)
    assert device.pictures and same(got, on_the_cpu(load, photographs(), arrays=arrays))
    assert got.images[0].shape == (3, 64, 80)


def test_beside_arrays_that_workers_have_to_decode_they_decode_pictures_too() -> None:
    values = ArraySpec((4,), np.int32, np.int32)
    labels = {**LABELS, "words": values, "splits": ((2,), np.int32, np.int32)}
    load = ImageLoader(32, labels=labels)
    arrays = load.arrays() | {"words": ArraySpec((4,), np.int32, np.int32, PadRagged("splits", 3))}
    items = [(data, number, [1, 2, 3, 4], [0, 3]) for data, number in photographs()[:6]]
    device = FakeDevice()
    got = run(load, items, device.in_use(), arrays=arrays)
    assert not device.pictures and not got.report.pictures
    assert any("workers decode the files of a group" in note for note in got.report.notes)


# Time.


def test_the_engine_goes_on_while_a_decoder_blocks() -> None:
    """The third batch is in the decoder; the two before it are handed out, and then `next()` waits in vain."""
    device, gate, calls = FakeDevice(), threading.Event(), Counter[str]()

    def wait() -> None:
        calls["decodings"] += 1
        if calls["decodings"] >= 3:
            gate.wait(30)

    device.before_decoding = wait
    load = random_crop()
    group = DataGroup(5, photographs(), loader_arrays=load.arrays())
    with device.in_use(), Dataloader(
        load, group, delivery="alias", executor="thread", depth=3, timeout_sec=0.5, end_at=("epoch", 1)
    ) as loader:  # fmt: skip
        try:
            for _ in range(2):
                next(loader)
            with pytest.raises(BatchTimeoutError):
                next(loader)
        finally:
            gate.set()


def test_what_a_decoder_raises_ends_the_run() -> None:
    from hydrax_gpu.errors import PlacementError

    device = FakeDevice()

    def fail() -> None:
        raise RuntimeError("the driver is gone")

    device.before_decoding = fail
    with pytest.raises(PlacementError, match="could not decode the files of a batch: RuntimeError: the driver is gone"):
        run(random_crop(), photographs(), device.in_use())


# A file in a slot.


def test_a_record_is_what_was_written() -> None:
    row = np.full(1024, 0xEE, np.uint8)
    data = np.arange(200, dtype=np.uint8)
    write(row, data, (1, 2, 30, 40), Box(3, 4, 5, 6), Turn(True, False, True))
    record: Any = Record.from_buffer(row)
    assert record.state == FILE and record.nbytes == 200
    assert [*record.part] == [1, 2, 30, 40] and [*record.box] == [3, 4, 5, 6]
    assert (record.swap, record.mirror_x, record.mirror_y) == (1, 0, 1)
    assert np.array_equal(row[HEAD : HEAD + 200], data) and (row[HEAD + 200 :] == 0xEE).all()
    write(row, None)
    assert record.state == PIXELS


def test_files_lie_behind_the_arrays_of_a_layout() -> None:
    layout = Layout.build(3, {"image": ((4, 5, 3), np.uint8, np.uint8), "y": ((), np.int32, np.int32)})
    rows = PictureRows(4, 5, 3, "HWC", np.dtype(np.uint8))
    more = with_encoded(layout, {"image": Encoded(1000, rows)})
    assert more.arrays == layout.arrays and more.arrays_nbytes == layout.nbytes == layout.arrays_nbytes
    (encoded,) = more.encoded
    assert encoded.scratch == layout.nbytes and encoded.offset >= encoded.scratch + 3 * ctypes.sizeof(Item)
    assert encoded.offset % 256 == 0 and encoded.row_nbytes == 1280
    assert more.nbytes == encoded.offset + 3 * 1280
    memory = (ctypes.c_ubyte * more.nbytes)()
    views = more.file_views(memory)
    assert [each["image"].ctypes.data - ctypes.addressof(memory) for each in views] == [
        encoded.offset + row * 1280 for row in range(3)
    ]
    # an array of another kind is none of the loader's
    for other in ({"x": Encoded(1000, rows)}, {"image": Encoded(1000, PictureRows(4, 5, 3, "CHW", rows.dtype))}):
        assert with_encoded(layout, other) is layout


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{rows.dtype.name}-{rows.layout}-{rows.channels}")
def test_the_launch_makes_the_bits_of_the_twin(
    rows: PictureRows, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrax_gpu import testing
    from hydrax_gpu._kernels.choice import Choice

    if not library:
        monkeypatch.setattr(testing, "choose", lambda: Choice(None, "it is left out by a test"))
    elif not sources.LIBRARY.exists():
        pytest.skip("the host library was not built")
    check_resizer(FakeDevice(), rows, ctypes.string_at)
