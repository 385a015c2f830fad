"""One declaration gives the layout: offsets, views, dtypes, and errors that say what to write instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._spec import ALIGNMENT, ArrayLayout, ArraySpec, Layout

DTYPES = [
    *(np.dtype(name) for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")),
    *(np.dtype(name) for name in ("float16", "float32", "float64", "complex64", "complex128")),
    *(
        np.dtype(getattr(ml_dtypes, name))
        for name in (
            *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
            *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        )
    ),
]

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)
DECLARATIONS = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.tuples(SHAPES, st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    min_size=1,
    max_size=5,
)


def memory_for(layout: Layout) -> memoryview:
    return memoryview(bytearray(layout.nbytes))


def rejected(value: object, *, kind: type[Exception] = TypeError) -> str:
    with pytest.raises(kind) as caught:
        Layout.build(2, {"image": value})
    assert "array 'image'" in str(caught.value), "the message names the array"
    return str(caught.value)


# Layouts.


@given(st.integers(1, 9), DECLARATIONS)
def test_arrays_are_aligned_in_order_and_do_not_overlap(rows: int, declarations: dict[str, Any]) -> None:
    layout = Layout.build(rows, declarations)
    assert [array.name for array in layout.arrays] == list(declarations)
    end = 0
    for array in layout.arrays:
        assert array.offset % ALIGNMENT == 0
        assert end <= array.offset < end + ALIGNMENT
        end = array.offset + array.nbytes
    assert layout.rows == rows
    assert end <= layout.nbytes < end + ALIGNMENT


@given(st.integers(1, 9), DECLARATIONS)
def test_tuples_say_what_was_declared_with_the_batch_dimension_first(rows: int, declarations: dict[str, Any]) -> None:
    layout = Layout.build(rows, declarations)
    tuples = layout.tuples()
    assert list(tuples) == list(declarations)
    for array, (name, (item_shape, numpy_dtype, jax_dtype)) in zip(layout.arrays, declarations.items(), strict=True):
        shape, ours, jaxs, offset, count = tuples[name]
        assert shape == (rows, *item_shape)
        assert (ours, jaxs) == (numpy_dtype, jax_dtype)
        assert type(ours) is type(numpy_dtype) and isinstance(jaxs, np.dtype)
        assert offset == array.offset
        assert count == math.prod(shape)
    with pytest.raises(TypeError):
        tuples["another"] = ()  # type: ignore[index]


@given(st.integers(1, 6), DECLARATIONS, st.data())
def test_views_are_windows_on_the_same_memory(rows: int, declarations: dict[str, Any], data: st.DataObject) -> None:
    layout = Layout.build(rows, declarations)
    memory = memory_for(layout)
    bytes_ = np.frombuffer(memory, np.uint8)
    batch, items = layout.batch_views(memory), layout.item_views(memory)
    assert len(items) == rows
    for array in layout.arrays:
        view = batch[array.name]
        assert view.shape == array.shape and view.dtype == array.numpy_dtype
        assert view.flags.c_contiguous and view.flags.writeable
        assert np.shares_memory(view, bytes_)
        for other in layout.arrays:
            assert other is array or not np.shares_memory(view, batch[other.name])
    row = data.draw(st.integers(0, rows - 1), "row")
    for array in layout.arrays:
        view = items[row][array.name]
        assert view.shape == array.item_shape and view.dtype == array.numpy_dtype
        assert view.flags.c_contiguous and view.flags.writeable
        view[...] = 1
        expected = np.zeros(array.shape, array.numpy_dtype)
        expected[row] = 1
        assert batch[array.name].tobytes() == expected.tobytes(), "an item's view is its row and no other"


def test_a_scalar_item_has_the_empty_shape() -> None:
    layout = Layout.build(3, {"label": ((), np.int32, np.int32)})
    assert layout.tuples()["label"] == ((3,), np.dtype(np.int32), np.dtype(np.int32), 0, 3)
    memory = memory_for(layout)
    for number, item in enumerate(layout.item_views(memory)):
        assert item["label"].shape == ()
        item["label"][...] = number
    assert layout.batch_views(memory)["label"].tolist() == [0, 1, 2]


def test_the_first_rows_of_a_batch_can_be_viewed_alone() -> None:
    layout = Layout.build(4, {"a": ((2,), np.int16, np.int16), "b": ((), np.uint8, np.uint8)})
    memory = memory_for(layout)
    short, whole = layout.batch_views(memory, 3), layout.batch_views(memory)
    assert {name: view.shape for name, view in short.items()} == {"a": (3, 2), "b": (3,)}
    for name, view in short.items():
        view[...] = 7
        assert (whole[name][:3] == 7).all() and not whole[name][3:].any()


def test_the_mapping_of_an_item_is_read_only() -> None:
    layout = Layout.build(1, {"a": ((), np.int8, np.int8)})
    (item,) = layout.item_views(memory_for(layout))
    assert isinstance(item, Mapping)
    with pytest.raises(TypeError):
        item["a"] = np.zeros(())  # type: ignore[index]


def test_array_layout_counts_bytes_and_rows() -> None:
    array = ArrayLayout("a", (4, 3, 2), np.dtype(np.int16), np.dtype(np.float32), 512)
    assert (array.item_shape, array.count, array.nbytes, array.row_nbytes) == ((3, 2), 24, 48, 12)


# Declarations.


def test_an_array_spec_is_as_good_as_a_tuple_or_a_list() -> None:
    parts = ((2, 3), np.uint8, np.float32)
    for value in (parts, list(parts), ArraySpec(*parts)):
        assert ArraySpec.of("image", value) == ArraySpec((2, 3), np.dtype(np.uint8), np.dtype(np.float32))


@pytest.mark.parametrize("shape", [[2, 3], np.array([2, 3]), (np.int64(2), 3), range(2, 4)])
def test_a_shape_may_be_any_sequence_of_integers(shape: Any) -> None:
    assert ArraySpec.of("image", (shape, "u1", "u1")).shape == (2, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_supported_dtype_is_known_by_object_scalar_type_and_name(dtype: np.dtype[Any]) -> None:
    for value in (dtype, dtype.type, dtype.name):
        assert ArraySpec.of("image", ((), value, value)) == ArraySpec((), dtype, dtype)


@pytest.mark.parametrize("value", [None, 3, "f4", (), ((2,), np.uint8), ((2,), np.uint8, np.uint8, 1), np.uint8])
def test_what_is_no_triple_is_refused_with_an_example(value: object) -> None:
    message = rejected(value)
    assert f"got {value!r}" in message
    assert "wanted (item_shape, numpy_dtype, jax_dtype) or an ArraySpec" in message
    assert "((32, 32, 3), np.uint8, jnp.float32)" in message


@pytest.mark.parametrize("shape", [3, None, "ab", "12", (2.5,), (2, None), (2, "3"), ((2,),)])
def test_what_is_no_shape_is_refused(shape: object) -> None:
    message = rejected((shape, np.uint8, np.uint8))
    assert f"got shape {shape!r}" in message
    assert "wanted a tuple of dimensions without the batch dimension" in message


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (-1,)])
def test_dimensions_below_one_are_refused(shape: tuple[int, ...]) -> None:
    message = rejected((shape, np.uint8, np.uint8), kind=ValueError)
    assert f"got shape {shape}, wanted dimensions of at least 1" in message


@pytest.mark.parametrize("which", ["numpy_dtype", "jax_dtype"])
@pytest.mark.parametrize(
    "dtype", [str, object, "S4", "datetime64[s]", ml_dtypes.int4, "int4", np.dtype([("a", "i4")]), np.longdouble]
)
def test_dtypes_that_jax_cannot_alias_are_refused_with_those_that_it_can(which: str, dtype: Any) -> None:
    message = rejected(((), *((dtype, "u1") if which == "numpy_dtype" else ("u1", dtype))), kind=ValueError)
    assert f"{which} " in message and "cannot be held by a jax.Array" in message
    assert "bfloat16, bool, complex128" in message, "it lists what is supported"


@pytest.mark.parametrize("dtype", ["no such dtype", 3, "finfo_", [1]])
def test_what_is_no_dtype_is_refused(dtype: Any) -> None:
    message = rejected(((), dtype, "u1"), kind=ValueError)
    assert "numpy_dtype" in message
    assert f"{dtype!r} is not a dtype that NumPy or ml_dtypes knows" in message


@pytest.mark.parametrize("which", ["numpy_dtype", "jax_dtype"])
def test_a_missing_dtype_is_refused_and_not_taken_for_float64(which: str) -> None:
    message = rejected(((), *((None, "u1") if which == "numpy_dtype" else ("u1", None))))
    assert f"got no {which}, wanted a dtype such as np.uint8" in message


def test_foreign_byte_order_is_refused_with_the_native_one() -> None:
    foreign = np.dtype(np.int32).newbyteorder("S")
    message = rejected(((), foreign, np.int32), kind=ValueError)
    assert f"{foreign.str!r} has foreign byte order; wanted int32" in message


def test_no_arrays_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got no arrays, wanted at least one \{name: \(item_shape"):
        Layout.build(2, {})


@pytest.mark.parametrize("name", [3, None, b"a", ""])
def test_names_are_non_empty_strings(name: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Layout.build(2, {name: ((), "u1", "u1")})
    assert str(caught.value) == f"array names are non-empty strings, got {name!r}"
