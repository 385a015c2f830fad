"""What the work of the benchmark `jpeg` costs with no loader around it: two threads, and libjpeg-turbo in C."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .accounts import Window
from .photo_work import CHECKED, PASSES, SIZE, Box, all_paths, draw, judge, number_of
from .photos import CACHE

SOURCE = Path(__file__).resolve().parent / "native" / "jpeg_limits.c"
BUFFER_BYTES = 3 * 2048 * 2048
PROBLEMS = {1: "libjpeg reported an error", 2: "the file could not be read", 3: "the output has no room"}


class MissingToolError(Exception):
    """What is needed to measure a limit is not on this machine; the message says what."""


def build() -> Path:
    """Compile the C functions, unless that has been done, into the benchmarks' cache folder.

    Raises:
        MissingToolError: If there is no C compiler or no header of libjpeg-turbo.
    """
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise MissingToolError("no C compiler (cc, gcc or clang)")
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = CACHE / f"jpeg_limits-{key}.so"
    if not library.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "made.so"
            command = [compiler, "-O2", "-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", str(made), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                if "jpeglib.h" in done.stderr:
                    raise MissingToolError("no jpeglib.h (on Debian: apt install libjpeg62-turbo-dev)")
                raise MissingToolError(f"the C functions do not compile: {done.stderr[-400:]}")
            os.replace(made, library)
    return library


def turbo_libraries() -> dict[str, str]:
    """The shared libjpeg-turbos of this machine, by a name for the table: the system's, and that in Pillow's wheel."""
    found: dict[str, str] = {}
    spec = find_spec("PIL")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted((Path(folder).parent / "pillow.libs").glob("libjpeg-*.so*")):
            found["Pillow's"] = str(path)
    try:
        ctypes.CDLL("libjpeg.so.62")
        found["system's"] = "libjpeg.so.62"
    except OSError:
        pass
    if not found:
        raise MissingToolError(
            "no shared libjpeg-turbo: neither libjpeg.so.62 of the system nor that of Pillow's wheel"
        )
    return found


@cache
def functions(libjpeg: str) -> Any:
    """The C functions on top of that libjpeg-turbo. A process can have one."""
    ctypes.CDLL(libjpeg, mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(build()))
    integer, pointer = ctypes.c_int, ctypes.POINTER(ctypes.c_int)
    buffer = [ctypes.c_void_p, ctypes.c_size_t]
    library.huffman.argtypes = [ctypes.c_char_p]
    library.full.argtypes = [ctypes.c_char_p, *buffer, pointer, pointer]
    library.region.argtypes = [ctypes.c_char_p, integer, integer, integer, integer, *buffer, pointer, pointer]
    return library


class Reader:
    """One thread's decoding: a file and a part in, a view of the part's pixels out."""

    def __init__(self, libjpeg: str) -> None:
        self._library = functions(libjpeg)
        self._buffer = np.empty(BUFFER_BYTES, np.uint8)
        self._address = self._buffer.ctypes.data
        self._one, self._two = ctypes.c_int(), ctypes.c_int()
        self._references = ctypes.byref(self._one), ctypes.byref(self._two)

    def huffman(self, path: bytes, box: Box) -> None:
        """Huffman decoding of all of it."""
        self._must(self._library.huffman(path), path)

    def region(self, path: bytes, box: Box) -> np.ndarray:
        """The part, of which libjpeg decodes no more rows, and few more columns."""
        x, y, w, h = box
        self._must(self._library.region(path, x, y, w, h, self._address, BUFFER_BYTES, *self._references), path)
        width, left = self._one.value, self._two.value
        return self._buffer[: 3 * width * h].reshape(h, width, 3)[:, left : left + w]

    def full(self, path: bytes, box: Box) -> np.ndarray:
        """The part, after decoding everything."""
        self._must(self._library.full(path, self._address, BUFFER_BYTES, *self._references), path)
        width, height = self._one.value, self._two.value
        x, y, w, h = box
        return self._buffer[: 3 * width * height].reshape(height, width, 3)[y : y + h, x : x + w]

    def leave(self) -> None:
        """Free what this thread holds."""
        self._library.leave()

    @staticmethod
    def _must(status: int, path: bytes) -> None:
        if status:
            raise RuntimeError(f"{os.fsdecode(path)}: {PROBLEMS[status]}")


def measure(kind: str, libjpeg: str, batch: int, workers: int, warm_s: float, window_s: float) -> dict[str, Any]:
    """Decode (`huffman`, `region` or `full`) and resize by OpenCV on `workers` threads, each its share of a batch.

    The parts and the flips are drawn before.
    """
    paths = all_paths()
    files = [os.fsencode(path) for path in paths] * PASSES
    sizes = [_size_of(path) for path in paths] * PASSES
    random = Random(0)
    boxes = [draw(random.random, *size) for size in sizes]
    flips = [random.random() < 0.5 for _ in sizes]
    rows = np.zeros((batch, SIZE, SIZE, 3), np.uint8)
    result: dict[str, Any] = {}
    if kind != "huffman":
        result = _check(_item(kind, libjpeg), paths, files, boxes, flips)
    counts, stop, problems = [0] * workers, threading.Event(), list[BaseException]()
    share = batch // workers

    def work(index: int) -> None:
        try:
            item = _item(kind, libjpeg)
            mine = rows[index * share : (index + 1) * share]
            numbers = itertools.cycle(range(index, len(files), workers))
            while not stop.is_set():
                for row in mine:
                    number = next(numbers)
                    item(files[number], boxes[number], flips[number], row)
                counts[index] += share
        except BaseException as problem:
            problems.append(problem)
            stop.set()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
    for thread in threads:
        thread.start()
    while min(counts) < share and not problems:
        time.sleep(0.01)
    time.sleep(warm_s)
    window, before = Window(), sum(counts)
    time.sleep(window_s)
    done = sum(counts) - before
    usage = window.close()
    stop.set()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return usage.per_item(done) | result


def preferred() -> tuple[str, str]:
    """Name and path of the libjpeg-turbo to measure: Pillow's, which is the newer one as a rule, or the system's.

    Raises:
        MissingToolError: If something is missing that a limit needs.
    """
    build()
    return next(iter(turbo_libraries().items()))


def _item(kind: str, libjpeg: str) -> Callable[[bytes, Box, bool, np.ndarray], None]:
    """A function that makes one picture, for the thread that calls this."""
    reader = Reader(libjpeg)
    if kind == "huffman":
        return lambda path, box, flip, row: reader.huffman(path, box)
    import cv2

    cv2.setNumThreads(1)
    decode, turned = getattr(reader, kind), np.empty((SIZE, SIZE, 3), np.uint8)

    def item(path: bytes, box: Box, flip: bool, row: np.ndarray) -> None:
        pixels = decode(path, box)
        if flip:
            cv2.resize(pixels, (SIZE, SIZE), turned)
            cv2.flip(turned, 1, row)
        else:
            cv2.resize(pixels, (SIZE, SIZE), row)

    return item


def _check(item: Any, paths: Sequence[str], files: Any, boxes: Any, flips: Any) -> dict[str, float]:
    images = np.zeros((CHECKED, SIZE, SIZE, 3), np.uint8)
    for number in range(CHECKED):
        item(files[number], boxes[number], flips[number], images[number])
    index = np.array([number_of(path) for path in paths[:CHECKED]])
    box = np.array([(*boxes[number], flips[number]) for number in range(CHECKED)])
    return judge(paths, [{"image": images, "index": index, "box": box}], CHECKED)


def _size_of(path: str) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size
