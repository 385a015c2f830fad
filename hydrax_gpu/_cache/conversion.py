"""Records from one form to another: what `hydrax-gpu cache copy --compression` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.compression import compressor, decompressor
from hydrax_gpu._cache.descriptor import ArrayFormat, Descriptor
from hydrax_gpu._kernels.dequantize import Dequantize
from hydrax_gpu._kernels.host import Library
from hydrax_gpu._kernels.quantize import BLOCK, INPUTS, Quantize, parts, record_nbytes
from hydrax_gpu.errors import CacheError

__all__ = ["Converter", "converted", "converters"]

_Form: TypeAlias = Literal["zstd", "lz4", "int8"]
Converter: TypeAlias = Callable[[Any], Any]
"""Makes another record of a record; raises ValueError when that cannot be."""

_FORMS = (None, "zstd", "lz4", "int8")


def converted(descriptor: Descriptor, forms: Mapping[str, str | None]) -> Descriptor:
    """What a cache is of when some of its arrays are kept in another form.

    Args:
        descriptor: of the cache as it is.
        forms: the form of arrays by their names, or that of all under the name "".

    Raises:
        CacheError: there is no such array or form, or the two do not go together.
    """
    names = [array.name for array in descriptor.arrays]
    for name, form in forms.items():
        if name and name not in names:
            raise CacheError(f"the cache has no array {name!r}; wanted one of {', '.join(names)}.")
        if form not in _FORMS:
            raise CacheError(f"got the compression {form!r}, wanted none, zstd, lz4 or int8.")
    arrays = tuple(
        _in_form(array, cast("_Form | None", forms.get(array.name, forms.get("", array.compression))))
        for array in descriptor.arrays
    )
    return replace(descriptor, arrays=arrays)


def _in_form(array: ArrayFormat, form: _Form | None) -> ArrayFormat:
    nbytes = array.value_nbytes
    if form == "int8":
        if array.dtype not in INPUTS:
            raise CacheError(
                f"array {array.name!r} is of {array.dtype}, which int8 cannot stand for. Name those that are of "
                f"{', '.join(INPUTS)}: --compression NAME=int8."
            )
        nbytes = record_nbytes(math.prod(array.item_shape))
    return replace(array, compression=form, nbytes=nbytes)


def converters(
    arrays: Sequence[ArrayFormat], wanted: Sequence[ArrayFormat], library: Library | None
) -> list[Converter | None]:
    """For each array what makes a record of the one form one of the other; None where they are the same.

    Not for several threads at a time.

    Args:
        arrays: as they are.
        wanted: as they are to be.
        library: the kernels' host library, or None for NumPy to do their work.

    Raises:
        CacheError: a package for it is not installed.
    """
    return [
        None if old.compression == new.compression else _converter(old, new, library)
        for old, new in zip(arrays, wanted, strict=True)
    ]


def _converter(old: ArrayFormat, new: ArrayFormat, library: Library | None) -> Converter:
    steps: list[Converter] = []
    if old.packed and old.nbytes:
        expand = decompressor(old.packed)
        steps.append(lambda record: expand(record, old.nbytes))
    if old.compression == "int8":
        steps.append(_restored(old, library))
    if new.compression == "int8":
        steps.append(_quantized(new, library))
    if new.packed and new.nbytes:
        steps.append(compressor(new.packed))

    def convert(record: Any) -> Any:
        for step in steps:
            record = step(record)
        return record

    return convert


def _restored(array: ArrayFormat, library: Library | None) -> Converter:
    count, dtype = math.prod(array.item_shape), _dtype(array)
    kernel = Dequantize(library, (count,), BLOCK, np.dtype(np.int8), np.dtype(np.float32), dtype)

    def restore(record: Any) -> npt.NDArray[np.uint8]:
        values = np.empty((1, count), dtype)
        kernel(*parts(np.frombuffer(record, np.uint8).reshape(1, -1), count), values)
        return values.view(np.uint8)[0]

    return restore


def _quantized(array: ArrayFormat, library: Library | None) -> Converter:
    count, dtype = math.prod(array.item_shape), _dtype(array)
    kernel = Quantize(library, count, dtype)

    def quantize(record: Any) -> npt.NDArray[np.uint8]:
        made = np.empty((1, array.nbytes), np.uint8)
        if not kernel(np.frombuffer(record, np.uint8).view(dtype).reshape(1, count), made).all():
            raise ValueError("it has values that are not finite, which int8 cannot hold")
        return made[0]

    return quantize


def _dtype(array: ArrayFormat) -> np.dtype[Any]:
    if array.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(array.dtype)
