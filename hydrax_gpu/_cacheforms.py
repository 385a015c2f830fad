"""In which form a group's arrays are kept on disk: `DataGroup(cache_compression=)`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from hydrax_gpu._spec import ArrayLayout, ArraySpec, Layout

if TYPE_CHECKING:
    from hydrax_gpu._cache import ArrayFormat

__all__ = ["FORMS", "CacheCompression", "Form", "array_formats", "chosen_forms", "quantized"]

Form: TypeAlias = Literal["zstd", "lz4", "int8"]
CacheCompression: TypeAlias = "Form | Mapping[str, Form | None] | None"

FORMS: tuple[Form, ...] = ("zstd", "lz4", "int8")


def chosen_forms(value: object, arrays: Sequence[ArrayLayout], *, shared: bool) -> dict[str, Form]:
    """The form of each array that is not kept as it is, by its name.

    Args:
        value: `cache_compression` as given.
        arrays: that are kept.
        shared: whether they are the arrays that the loader function fills, into which what is read is restored.

    Raises:
        TypeError, ValueError: it is none of what it may be, names another array, or one that it does not fit.
    """
    names = [array.name for array in arrays]
    if value is None:
        return {}
    if isinstance(value, str):
        chosen: dict[Any, Any] = dict.fromkeys(names, value)
    elif isinstance(value, Mapping):
        chosen = dict(cast("Mapping[Any, Any]", value))
    else:
        raise TypeError(
            f"cache_compression: got {type(value).__name__}, wanted None, {', '.join(map(repr, FORMS))}, or a dict of "
            "these by the names of arrays"
        )
    for name, form in chosen.items():
        if name not in names:
            raise ValueError(f"cache_compression: got {name!r}, wanted names of cached arrays: {', '.join(names)}")
        if form not in (None, *FORMS):
            raise ValueError(
                f"cache_compression: got {form!r} for array {name!r}, wanted {', '.join(map(repr, FORMS))} or None"
            )
    found: dict[str, Form] = {}
    for array in arrays:
        form = chosen.get(array.name)
        if form == "int8":
            _check_int8(array, by_name=isinstance(value, Mapping), shared=shared)
        if form is not None:
            found[array.name] = form
    return found


def _check_int8(array: ArrayLayout, *, by_name: bool, shared: bool) -> None:
    from hydrax_gpu._kernels.quantize import BLOCK, INPUTS

    dtypes = {"numpy_dtype": array.numpy_dtype} | ({} if shared else {"jax_dtype": array.jax_dtype})
    for which, dtype in dtypes.items():
        if dtype.name not in INPUTS:
            fix = "" if by_name else ". Name the arrays that may be rounded: cache_compression={...: 'int8'}"
            raise ValueError(
                f"cache_compression: got 'int8' for array {array.name!r} with {which} {dtype.name}, wanted "
                f"{', '.join(INPUTS[:-1])} or {INPUTS[-1]}: it rounds, to 1/254 of the largest of {BLOCK} "
                f"neighbours{fix}"
            )


def quantized(layout: Layout, forms: Mapping[str, Form]) -> Layout:
    """The layout of cached batches whose records in int8 come as they are on disk, and are decoded then."""
    if "int8" not in forms.values():
        return layout
    from hydrax_gpu._kernels.quantize import record_nbytes
    from hydrax_gpu.decode.int8 import Int8Blocks

    specs: dict[str, object] = {}
    for array in layout.arrays:
        shape, dtype, decode = array.item_shape, array.numpy_dtype, None
        if forms.get(array.name) == "int8":
            decode = Int8Blocks(shape, dtype.name)
            shape, dtype = (record_nbytes(math.prod(shape)),), "uint8"
        specs[array.name] = ArraySpec(shape, dtype, array.jax_dtype, decode)
    return Layout.build(layout.rows, specs)


def array_formats(arrays: Sequence[ArrayLayout], forms: Mapping[str, Form]) -> tuple[ArrayFormat, ...]:
    """What a cache's description says of its arrays, which are declared like this."""
    from hydrax_gpu._cache import ArrayFormat  # only whoever has a cache needs it

    made: list[ArrayFormat] = []
    for array in arrays:
        form, nbytes = forms.get(array.name), array.row_nbytes
        if form == "int8":
            from hydrax_gpu._kernels.quantize import record_nbytes

            nbytes = record_nbytes(math.prod(array.item_shape))
        made.append(ArrayFormat(array.name, array.item_shape, array.numpy_dtype.name, nbytes, form))
    return tuple(made)
