"""Bad files: each is an error of its item that names it, and nothing worse."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hydrax_gpu import ImageError
from hydrax_gpu._decode import chain, jpeg, reading
from hydrax_gpu._decode.contract import Buffer
from hydrax_gpu._decode.turbo import Turbo, open_turbo
from hydrax_gpu._kernels.resize_crop_flip_normalize import Resize
from hydrax_gpu.loaders import ImageLoader, RandomResizedCrop
from tests import image_files as pictures
from tests.fuzz_images import mutant
from tests.kernels import host

ROOT = Path(__file__).resolve().parents[2]


def refused(item: Any, **options: Any) -> ImageError:
    """The error of an item, whose row must be as it was."""
    loader = ImageLoader(8, **({"crop": None} | options))
    row = np.full(loader.declaration.shape, 7, np.uint8)
    with pytest.raises(ImageError) as caught:
        loader(item, {"image": row}, None)
    assert (row == 7).all()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "loop").symlink_to("loop")
        for path, reason in (
            (tmp_path, "a directory"),
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "no regular file"),
            (Path("/dev/zero"), "a device"),
            (tmp_path / "missing.jpg", "No such file"),
            (tmp_path / "loop", "cannot be read"),
            (Path("a\0b"), "no path"),
        ):
            error = refused(path)
            assert error.source == str(path)
            assert reason in error.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(pictures.kinds()["png rgb"])
    path.chmod(0)
    assert "Permission denied" in refused(path).reason


def test_a_read_that_fails_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", fails)
    assert "Input/output error" in refused(path).reason


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    good.write_bytes(pictures.kinds()["png rgb"])
    bad.write_bytes(b"")
    loader = ImageLoader(8)
    row = {"image": np.empty((8, 8, 3), np.uint8)}
    loader(good, row, 0)
    before = len(os.listdir("/proc/self/fd"))
    for path in (good, bad, tmp_path) * 10:
        try:
            loader(path, row, 0)
        except ImageError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for name, content, reason in (
        ("empty.jpg", b"", "0 bytes"),
        ("text.jpg", b"this is not a picture", "no picture of a known format"),
        ("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture of a known format"),
        ("zeros.png", bytes(1000), "no picture of a known format"),
        ("soi.jpg", b"\xff\xd8\xff", "before its first scan"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        error = refused(path)
        assert error.source == str(path)
        assert reason in error.reason
    assert "memory" in refused(b"").source


def test_the_contents_decide_and_not_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(pictures.encoded(pictures.photograph(8, 8), "PNG"))
    row = np.empty((8, 8, 3), np.uint8)
    ImageLoader(8, crop=None)(path, {"image": row}, None)
    np.testing.assert_array_equal(row, np.asarray(pictures.photograph(8, 8)))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # no bytes on the disk
    monkeypatch.setattr(os, "readv", lambda *_: pytest.fail("it was read"))
    assert "max_file_bytes=536,870,912" in refused(path).reason


def test_one_large_file_does_not_hold_memory_for_ever(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes(reading._KEEP + 1))
    small.write_bytes(b"x")
    reader = reading.Reader(1 << 30)
    assert reader.read(large).size == reading._KEEP + 1
    assert reader.read(small).tobytes() == b"x"
    assert reader._buffer.size <= 1 << 18


@pytest.mark.parametrize("kind", sorted(pictures.kinds()))
def test_too_many_pixels_are_refused_before_any_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.Chain, "decode", lambda *_: pytest.fail("it was decoded"))
    assert "48 x 36 pixels, more than max_pixels=1,727" in refused(pictures.kinds()[kind], max_pixels=1727).reason


def test_absurd_sizes_in_headers_are_refused() -> None:
    data = bytearray(pictures.kinds()["jpeg 4:2:0"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    assert "65000 x 65000" in refused(bytes(data)).reason
    data[at : at + 4] = struct.pack(">HH", 0, 48)
    assert "48 x 0 pixels" in refused(bytes(data)).reason
    png = bytearray(pictures.kinds()["png rgb"])
    png[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    refused(bytes(png))


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [
        (kind, decoder)
        for kind, data in sorted(pictures.kinds().items())
        for decoder in (chain.DECODERS if data[:2] == b"\xff\xd8" else ["Pillow"])
    ],
)
def test_a_truncated_file_is_an_error_wherever_it_ends(kind: str, decoder: str) -> None:
    data = pictures.kinds()[kind]
    if "animated" in kind:
        data = data[: len(pictures.kinds()["gif"])]  # the first frame, which is all that is read
    for length in {*range(1, 40), *range(40, len(data) - 64, 97)}:
        refused(data[:length], decoders=[decoder])


def test_a_truncated_jpeg_is_an_error_though_the_crop_is_above_that() -> None:
    data = pictures.encoded(pictures.photograph())
    for decoder in chain.DECODERS:
        loader = ImageLoader(8, crop=RandomResizedCrop(scale=(0.08, 0.1)), decoders=[decoder])
        for seed in range(30):
            with pytest.raises(ImageError, match="truncated"):
                loader(data[: len(data) * 9 // 10], {"image": np.empty((8, 8, 3), np.uint8)}, seed)


def test_an_error_in_the_entropy_coded_data_is_not_papered_over() -> None:
    host()
    data = bytearray(pictures.encoded(pictures.photograph(), restart_marker_blocks=4))
    markers = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    del data[markers[3] : markers[5]]
    assert "Corrupt JPEG data" in refused(bytes(data), decoders=["libjpeg-turbo"]).reason


def test_padding_between_markers_is_no_error() -> None:
    host()
    data = pictures.encoded(pictures.photograph(8, 8))
    at = data.index(b"\xff\xdb")
    row, padded = np.empty((2, 8, 8, 3), np.uint8)
    ImageLoader(8, crop=None)(data, {"image": row}, None)
    ImageLoader(8, crop=None)(data[:at] + bytes(7) + data[at:], {"image": padded}, None)
    np.testing.assert_array_equal(row, padded)


def test_a_progressive_picture_with_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    data = pictures.kinds()["jpeg progressive"]
    begin = data.rindex(b"\xff\xda")
    many = data[:begin] + data[begin:-2] * 200 + data[-2:]
    for decoders in (chain.DECODERS, ["Pillow"]):
        assert "scans, more than 100" in refused(many, decoders=decoders).reason


def test_samples_without_a_known_range_are_refused() -> None:
    for mode in ("F", "I"):
        data = pictures.encoded(Image.new(mode, (8, 8)), "TIFF")
        assert "no range is defined" in refused(data).reason


# The header of JPEG files has two readers.


def both(data: bytes) -> tuple[Any, Any]:
    turbo = Turbo(open_turbo(host().path), Buffer())
    return turbo.scan(np.frombuffer(data, np.uint8)), jpeg.scan(data)


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from([kind for kind in sorted(pictures.kinds()) if "jpeg" in kind]), seed=st.integers(0, 10**6))
def test_both_readers_of_headers_find_the_same(kind: str, seed: int) -> None:
    for data in (mutant(kind, seed), pictures.kinds()[kind]):
        first, second = both(data)
        assert first == second


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
@example(b"", False)
def test_both_readers_of_headers_find_the_same_in_anything(data: bytes, marked: bool) -> None:
    if data:
        first, second = both(b"\xff\xd8" + data if marked else data)
        assert first == second


@pytest.mark.parametrize("orientation", [0, 1, 6, 8, 9])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_orientation_is_found_in_either_byte_order(orientation: int, order: str) -> None:
    sign = "<" if order == "II" else ">"
    tiff = order.encode() + struct.pack(f"{sign}HIHHHIHHI", 42, 8, 2, 0x0100, 4, 1, 9, 0, 0x0112)
    tiff = order.encode() + struct.pack(f"{sign}HI", 42, 8) + struct.pack(f"{sign}H", 2)
    tiff += struct.pack(f"{sign}HHII", 0x0100, 4, 1, 9) + struct.pack(f"{sign}HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0" + tiff
    data = pictures.kinds()["jpeg gray"]
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
    first, second = both(data)
    assert first == second
    assert first.orientation == (orientation if 1 <= orientation <= 8 else 1)


# Whatever is done to a file.


def test_thousands_of_damaged_files_of_every_kind_do_no_harm() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz_images", "--count", "500"],
        cwd=ROOT, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.count("\n") == len(pictures.kinds()) + 1


def test_damaged_files_do_no_harm_under_sanitizers(tmp_path: Path) -> None:
    from hydrax_gpu._kernels import build, sources
    from tests.unit.test_kernels_sanitized import FLAGS, compiler, runtime

    preload = runtime(compiler())
    assert preload is not None
    folder = sources.folder()
    parts = ["resize_crop_flip_normalize.cu", "jpeg.cpp", "quick.cpp", "philox.cpp", "host.cpp"]
    library = str(tmp_path / "sanitized.so")
    subprocess.run(
        [*compiler(), *build.FLAGS, *FLAGS, '-DHX_DIGEST=""', "-shared", *(str(folder / part) for part in parts),
         "-o", library, "-ldl"],
        check=True, timeout=110,
    )  # fmt: skip
    environment = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_images", "--count", "80", "--seed", "5000", "--library", library],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    assert "libjpeg-turbo: read" in done.stdout


def test_threads_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [pictures.encoded(pictures.photograph(64, 48, seed)) for seed in range(2)]
    loader = ImageLoader(24)
    wanted = np.empty((2, 10, 24, 24, 3), np.uint8)
    for number, seed in np.ndindex(2, 10):
        loader(files[number], {"image": wanted[number, seed]}, seed)
    # both have decoded before either resizes: in a buffer that they shared, one would find the other's pixels
    both_decoded = threading.Barrier(2, timeout=60)
    original = Resize.__call__

    def resize(*arguments: Any, **options: Any) -> None:
        both_decoded.wait()
        original(*arguments, **options)

    monkeypatch.setattr(Resize, "__call__", resize)
    got = np.zeros_like(wanted)

    def work(number: int) -> None:
        for seed in range(10):
            loader(files[number], {"image": got[number, seed]}, seed)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(got, wanted)
