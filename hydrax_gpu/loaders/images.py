"""`ImageLoader`: pictures in compressed files, decoded, cropped, resized and flipped into the batch's rows."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import at_least
from hydrax_gpu._decode.chain import DECODERS, Chain, Picture
from hydrax_gpu._decode.contract import Damaged
from hydrax_gpu._decode.draws import Words, center_box, flipped, host_words, random_box, words
from hydrax_gpu._decode.geometry import reduced, stored_box, turned
from hydrax_gpu._decode.quick import CENTER, RANDOM, WHOLE, Quick
from hydrax_gpu._decode.reading import Reader
from hydrax_gpu._kernels.host import load
from hydrax_gpu._kernels.resize_crop_flip_normalize import EIGHTHS, UPRIGHT, Box, Resize
from hydrax_gpu._mem.encoded import HEAD, Encoded, PictureRows, write
from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.errors import ImageError
from hydrax_gpu.loaders._declaration import CenterCrop, Color, Crop, ImageDeclaration, Layout, RandomResizedCrop

__all__ = ["CenterCrop", "ImageDeclaration", "ImageLoader", "RandomResizedCrop"]

Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview"
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

_RANDOM = RandomResizedCrop()
_FLIPPED = turned(1, flip=True)
_SOURCES: tuple[type, ...] = (str, os.PathLike, bytes, bytearray, memoryview)


@final
class ImageLoader:
    """A loader function for pictures: `Dataloader(ImageLoader(224), group, ...)`.

    Args:
        size: height and width of the rows in pixels, or one number for both.
        crop: which part of a training picture is taken: `RandomResizedCrop()`, `CenterCrop()`, or None for the whole,
            whatever its shape. Sizes are those of the upright picture: EXIF orientation is honoured.
        validation_crop: the same for validation items, which have no seed. By default `CenterCrop()` where `crop` is
            random, and otherwise what `crop` is.
        flip: chance that a training picture is mirrored left to right, 0 to 1; True is 0.5, False 0.
        layout: `"HWC"` or `"CHW"`.
        dtype: of the rows: uint8, float16, bfloat16 or float32. Floats are `(value / 255 - mean) / std`.
        mean: for each channel, or one number for all; 0 by default. Only for floats.
        std: likewise; 1 by default.
        color: `"RGB"`, or `"gray"` for rows with one channel.
        read: given an item's descriptor, returns one of the kinds below. Without it descriptors are of these kinds:
            a path; the bytes of a file; a sequence of one of those and the values of the `labels`, in their order; a
            mapping that has one under the name `image` and the labels under theirs.
        labels: the other arrays of an item, as `DataGroup` takes them: `{"label": ((), np.int32, np.int32)}`.
        image: name of the pictures' array.
        background: what is behind pictures with alpha, RGB, 0 to 255.
        srgb: whether pictures with an ICC profile are converted to sRGB. By default profiles are ignored. Pillow does
            it, with the whole picture, which takes several times as long.
        max_pixels: width times height of the largest picture that is decoded.
        max_file_bytes: size of the largest file that is read.
        decoders: who decodes JPEG, in the order in which they are asked: `"libjpeg-turbo"`, `"simplejpeg"`, `"Pillow"`.
            Other formats are Pillow's.
        encoded_bytes: on a GPU with `delivery="alias"`, JPEG files of up to this size are decoded there, and each row
            of a slot has so much host memory for one; workers decode what is larger. By default twice the bytes of a
            row in uint8 and RGB, and at least 64 KiB; 0 leaves nothing to a GPU. Elsewhere it means nothing.

    Raises:
        ValueError, TypeError: an argument is not valid.
        ImageError: by a call: the picture cannot be had. Its row is as it was.

    The object is picklable and can be called from several threads. See `docs/images.md` for the exact definition of
    crops, draws and filter.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        crop: Crop = _RANDOM,
        validation_crop: Crop | Literal["default"] = "default",
        flip: float | bool = 0.5,
        layout: Layout = "HWC",
        dtype: npt.DTypeLike = np.uint8,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        color: Color = "RGB",
        read: Callable[[Any], Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        image: str = "image",
        background: tuple[int, int, int] = (0, 0, 0),
        srgb: bool = False,
        max_pixels: int = 1 << 27,
        max_file_bytes: int = 1 << 29,
        decoders: Sequence[str] = DECODERS,
        encoded_bytes: int | None = None,
    ) -> None:
        self._declaration = ImageDeclaration.of(
            size=size, crop=crop, validation_crop=validation_crop, flip=flip, layout=layout, dtype=dtype, mean=mean,
            std=std, color=color, background=background, srgb=srgb, max_pixels=max_pixels,
            max_file_bytes=max_file_bytes, decoders=decoders,
        )  # fmt: skip
        self._read = read
        self._image = image
        self._labels = {name: ArraySpec.of(name, value) for name, value in (labels or {}).items()}
        if image in self._labels:
            raise ValueError(f"labels: {image!r} is the name of the pictures' array; choose another, or image=")
        if read is not None and not callable(read):
            raise TypeError(f"read: got {read!r}, wanted a function of an item's descriptor")
        self._names = tuple(self._labels)
        height, width = self._declaration.size
        self._encoded_bytes = max(1 << 16, 6 * height * width)
        if encoded_bytes is not None:
            self._encoded_bytes = at_least("encoded_bytes", encoded_bytes, 0)
        from hydrax_gpu._kernels.choice import choose  # the main process chooses, workers have no use for it

        self._begin(choose().path)

    def _begin(self, host: str | None) -> None:
        self._host = host
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin(self._host)

    def __repr__(self) -> str:
        return f"ImageLoader({self._declaration})"

    @property
    def declaration(self) -> ImageDeclaration:
        """All that determines the pixels, for those that make them elsewhere."""
        return self._declaration

    def arrays(self, jax_dtype: Any = None) -> dict[str, ArraySpec]:
        """What `DataGroup(loader_arrays=...)` wants for this loader: the pictures' array and the labels'.

        Args:
            jax_dtype: of the pictures in the batch; by default that of the rows.
        """
        dtype = self._declaration.dtype
        spec = ArraySpec(self._declaration.shape, dtype, dtype if jax_dtype is None else jax_dtype)
        return {self._image: spec, **self._labels}

    @property
    def encoded(self) -> Mapping[str, Encoded]:
        """What a device can be given in place of pixels: the pictures' array, or nothing."""
        if not self._encoded_bytes:
            return {}
        what = self._declaration
        scale, bias = (None if each is None else tuple(map(float, each)) for each in what.affine())
        rows = PictureRows(*what.size, what.channels, what.layout, what.dtype, scale, bias)
        return {self._image: Encoded(self._encoded_bytes, rows)}

    def take_counts(self) -> dict[str, int] | None:
        """What did not go as it should since this was last asked for, as lines of text with counts; None for nothing.

        The report of a `Dataloader` has them as `fallbacks`.
        """
        if not self._counts:
            return None
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    def __call__(self, item: Any, arrays: Arrays, seed: int | None) -> None:
        """Fills an item's rows.

        Args:
            item: its descriptor.
            arrays: its rows by name: what `arrays()` declares.
            seed: determines crop and flip; None for the validation crop, and no flip.

        Raises:
            ImageError: the picture cannot be had.
            KeyError, ValueError: the descriptor lacks a label, or an array was not declared.
        """
        source, labels = self._parts(item if self._read is None else self._read(item))
        self._worker().load(source, arrays[self._image], seed)
        for name, value in zip(self._names, labels, strict=True):
            arrays[name][...] = value

    def encode(self, item: Any, arrays: Arrays, encoded: Arrays, seed: int | None) -> None:
        """As a call, but that a file which a device can decode is left to it, with the crop that was drawn.

        Args:
            item: its descriptor.
            arrays: its rows by name.
            encoded: memory for the file, by name, of at least the bytes that `encoded` says.
            seed: as for a call.

        Raises:
            ImageError, KeyError, ValueError: as a call.
        """
        write(encoded[self._image], None)  # what an earlier item left there is not to be decoded in its place
        source, labels = self._parts(item if self._read is None else self._read(item))
        self._worker().encode(source, arrays[self._image], encoded[self._image], seed)
        for name, value in zip(self._names, labels, strict=True):
            arrays[name][...] = value

    def _worker(self) -> _Worker:
        worker = cast("_Worker | None", getattr(self._threads, "worker", None))
        if worker is None:
            worker = self._threads.worker = _Worker(self._declaration, self._host, self._count)
        return worker

    def _parts(self, value: Any) -> tuple[Source, Sequence[Any]]:
        parts = cast("Sequence[Any]", ())
        if isinstance(value, _SOURCES):
            parts = (value,)
        elif isinstance(value, Mapping):
            named = cast("Mapping[str, Any]", value)
            parts = (named[self._image], *(named[name] for name in self._names))
        elif isinstance(value, tuple | list):
            parts = cast("Sequence[Any]", value)
        if len(parts) != 1 + len(self._names):
            wanted = "".join(f", {name}" for name in self._names)
            raise ValueError(
                f"got {value!r}, wanted {'a path or bytes' if not wanted else f'(path or bytes{wanted})'}: as many "
                "values as this loader has arrays. Declare labels=, or make them with read="
            )
        return parts[0], parts[1:]

    def _count(self, line: str) -> None:
        with self._lock:
            self._counts[line] += 1


_NOT_PICKLED = ("_threads", "_lock", "_counts")


@final
class _Worker:
    """What one thread needs to load pictures, made when it is first asked to."""

    def __init__(self, declaration: ImageDeclaration, host: str | None, count: Callable[[str], None]) -> None:
        self._what = declaration
        self._count = count
        gray = declaration.color == "gray"
        self.chain = Chain(
            declaration.decoders, host, declaration.background, srgb=declaration.srgb, gray=gray, count=count
        )
        self._reader = Reader(declaration.max_file_bytes)
        library = None if host is None else load(host)
        self._words: Words = words if library is None else host_words(library)
        height, width = declaration.size
        scale, bias = declaration.affine()
        self._resize = Resize(
            library, height, width, declaration.channels, declaration.layout,
            declaration.dtype, scale, bias,
        )  # fmt: skip

        self._shape, self._dtype = declaration.shape, declaration.dtype
        self._quick: Quick | None = None
        if library is not None and self.chain.turbo is not None:
            self._quick = Quick(
                library, self.chain.turbo, height=height, width=width, gray=gray, flip=declaration.flip,
                max_file_bytes=declaration.max_file_bytes, max_pixels=declaration.max_pixels,
            )  # fmt: skip
        crops = declaration.crop, declaration.validation_crop
        self._crops = [_crop_arguments(crop, declaration.size) for crop in crops]

    def load(self, source: Source, out: npt.NDArray[Any], seed: int | None) -> None:
        if out.shape != self._shape or out.dtype != self._dtype:
            raise ValueError(
                f"got an array of shape {out.shape} and dtype {out.dtype} for the pictures, wanted {self._shape} and "
                f"{self._dtype}: declare it by the loader's own arrays()"
            )
        if isinstance(source, os.PathLike):
            source = os.fsdecode(source)
        if self._quick is not None:
            kind, options = self._crops[seed is None]
            if (found := self._quick.load(source, seed, kind, **options)) is not None:
                self._resize(found.pixels, found.box, out, turn=_FLIPPED if found.flip else UPRIGHT)
                return
        data = self._data(source)
        try:
            picture, box, flip = self._opened(data, seed)
            part = self.chain.decode(picture, box, *self._what.size)
        except Damaged as error:
            raise ImageError(_name(source), str(error)) from error.__cause__
        self._resize(part.pixels, part.box, out, turn=turned(picture.orientation, flip=flip))

    def encode(self, source: Source, out: npt.NDArray[Any], row: npt.NDArray[np.uint8], seed: int | None) -> None:
        if isinstance(source, os.PathLike):
            source = os.fsdecode(source)
        data = self._data(source)
        try:
            picture, box, flip = self._opened(data, seed)
            turn = turned(picture.orientation, flip=flip)
            reason = self._unfit(picture, row.size - HEAD)
            if reason is None:
                box, pixels = reduced(
                    stored_box(box, picture.orientation, picture.width, picture.height),
                    EIGHTHS, picture.width, picture.height,
                )  # fmt: skip
                x, y = EIGHTHS * pixels.x, EIGHTHS * pixels.y
                write(row, data, pixels, Box(box.x - x, box.y - y, box.width, box.height), turn)
                return
            part = self.chain.decode(picture, box, *self._what.size)
        except Damaged as error:
            raise ImageError(_name(source), str(error)) from error.__cause__
        self._count(f"a worker decoded a picture that a device was to decode: {reason}")
        self._resize(part.pixels, part.box, out, turn=turn)

    def _unfit(self, picture: Picture, capacity: int) -> str | None:
        """Why a picture is not left to a device."""
        header = picture.header
        if header is None:
            return "it is no JPEG file"
        if picture.data.size > capacity:
            return f"its file is larger than encoded_bytes allows ({capacity:,})"
        if header.components not in (1, 3) or header.precision != 8 or header.frame not in _FRAMES:
            return "it is a JPEG file of a rare kind (CMYK, 12 bits, arithmetic or lossless coding)"
        if self._what.srgb and header.profile:
            return "it has an ICC profile"
        return None

    def _data(self, source: Source) -> npt.NDArray[np.uint8]:
        if isinstance(source, str | os.PathLike):
            return self._reader.read(source)
        data = np.frombuffer(source, np.uint8)
        if not data.size:
            raise ImageError(_name(source), "it is empty (0 bytes)")
        return data

    def _opened(self, data: npt.NDArray[np.uint8], seed: int | None) -> tuple[Picture, Box, bool]:
        what = self._what
        picture = self.chain.open(data)
        if picture.width * picture.height > what.max_pixels:
            raise Damaged(
                f"it has {picture.width} x {picture.height} pixels, more than max_pixels={what.max_pixels:,} allows"
            )
        width, height = picture.width, picture.height
        if picture.orientation > 4:
            width, height = height, width
        box, flip = draw(what, seed, width, height, self._words)
        return picture, box, flip


_FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive, with Huffman codes."""


def _crop_arguments(crop: Crop, size: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    if isinstance(crop, RandomResizedCrop):
        return RANDOM, {"scale": crop.scale, "ratio": crop.ratio}
    if isinstance(crop, CenterCrop):
        return CENTER, {"resize": crop.shorter_side(size)}
    return WHOLE, {}


def draw(what: ImageDeclaration, seed: int | None, width: int, height: int, words: Words = words) -> tuple[Box, bool]:
    """The box of an upright picture, in eighths of a pixel, and whether it is mirrored."""
    crop = what.crop if seed is not None else what.validation_crop
    if isinstance(crop, RandomResizedCrop):
        box = random_box(0 if seed is None else seed, width, height, crop.scale, crop.ratio, words)
    elif isinstance(crop, CenterCrop):
        box = center_box(width, height, what.size, crop.shorter_side(what.size))
    else:
        box = Box(0, 0, EIGHTHS * width, EIGHTHS * height)
    return box, seed is not None and flipped(seed, what.flip, words)


def _name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    return f"{len(source):,} bytes in memory"
