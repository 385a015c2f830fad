"""Every dtype that can be declared arrives with its values, by each way of delivery."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader
from tests.loaders import fill

NARROW = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "complex64"),
    *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
WIDE = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}

ITEMS = [1, 2, 4, 8]
"""Powers of two: the only numbers that each of the dtypes has. (float8_e8m0fnu has no others, not even 0.)"""


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def load_one(shape: tuple[int, ...], numpy_dtype: Any, jax_dtype: Any, **options: Any) -> tuple[Any, str]:
    """The array of the only batch, and the way it was delivered."""
    group = DataGroup(4, ITEMS, loader_arrays={"x": (shape, numpy_dtype, jax_dtype)})
    with Dataloader(fill, group, executor="inline", end_at=("epoch", 1), **options) as loader:
        (batch,) = loader
        return batch.arrays["x"], loader.report().delivery[0]


def expected(shape: tuple[int, ...], numpy_dtype: Any, jax_dtype: Any) -> np.ndarray[Any, Any]:
    rows = np.array(ITEMS).reshape(-1, *(1 for _ in shape))
    return np.broadcast_to(rows, (4, *shape)).astype(numpy_dtype).astype(jax_dtype)


def assert_same(array: jax.Array, wanted: np.ndarray[Any, Any]) -> None:
    assert isinstance(array, jax.Array)
    assert (array.shape, array.dtype) == (wanted.shape, wanted.dtype)
    assert np.asarray(array).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 5)], ids=str)
@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("name", NARROW)
def test_values_of_every_dtype_arrive(name: str, delivery: Any, shape: tuple[int, ...]) -> None:
    dtype = dtype_of(name)
    array, way = load_one(shape, dtype, dtype, delivery=delivery)
    assert way == delivery, "no dtype makes the loader fall back to another way"
    assert_same(array, expected(shape, dtype, dtype))


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize(
    ("ours", "jaxs"),
    [
        *(("uint8", name) for name in NARROW if name not in ("bool", "uint8")),
        *(("float32", name) for name in ("bfloat16", "float16", "float8_e4m3fn", "int32", "complex64")),
        *(("bool", "float32"), ("int16", "uint8"), ("bfloat16", "float32"), ("float8_e5m2", "float16")),
    ],
)
def test_values_are_converted_to_the_jax_dtype(ours: str, jaxs: str, delivery: Any) -> None:
    array, way = load_one((3,), dtype_of(ours), dtype_of(jaxs), delivery=delivery)
    assert way == delivery
    assert_same(array, expected((3,), dtype_of(ours), dtype_of(jaxs)))


@pytest.mark.parametrize("delivery", ["alias", "copy", "auto"])
@pytest.mark.parametrize("name", WIDE)
def test_64_bits_become_32_with_one_warning_unless_x64_is_enabled(
    name: str, delivery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        array, way = load_one((2,), name, name, delivery=delivery)
    assert_same(array, expected((2,), name, WIDE[name]))
    assert way == "copy", "memory of 64-bit numbers cannot be shared with an array of 32-bit ones"
    messages = [record.getMessage() for record in caplog.records]
    declared = f"array 'x' is declared as {name}, but JAX makes {WIDE[name]} of it because jax_enable_x64 is off"
    assert messages.count(declared) == 1
    # Who asked for shared memory and cannot have it is told so, once.
    assert len(messages) == (2 if delivery == "alias" else 1)
    assert ("delivery='alias' cannot be had" in messages[-1]) == (delivery == "alias")


def test_the_warning_comes_once_and_not_for_every_batch(caplog: pytest.LogCaptureFixture) -> None:
    group = DataGroup(4, ITEMS * 5, loader_arrays={"x": ((), "int64", "int64")})
    with Dataloader(fill, group, executor="inline", end_at=("epoch", 2)) as loader:
        assert len(list(loader)) == 10
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_64_bit_memory_with_a_32_bit_jax_dtype_is_no_surprise(caplog: pytest.LogCaptureFixture) -> None:
    array, _ = load_one((2,), np.int64, np.int32)
    assert_same(array, expected((2,), np.int64, np.int32))
    assert not caplog.records


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("name", WIDE)
def test_64_bits_stay_where_x64_is_enabled(name: str, delivery: Any, caplog: pytest.LogCaptureFixture) -> None:
    with jax.enable_x64(True):
        array, way = load_one((2,), name, name, delivery=delivery)
        assert_same(array, expected((2,), name, name))
    assert way == delivery and not caplog.records


@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_arrays_of_different_dtypes_share_a_batch(delivery: Any) -> None:
    names = ["bool", "uint8", "bfloat16", "float32", "float8_e4m3fn"]
    arrays = {name: ((3,), dtype_of(name), dtype_of(name)) for name in names}
    group = DataGroup(4, ITEMS, loader_arrays=arrays)
    with Dataloader(fill, group, executor="inline", delivery=delivery, end_at=("epoch", 1)) as loader:
        (batch,) = loader
        for name in names:
            assert_same(batch.arrays[name], expected((3,), dtype_of(name), dtype_of(name)))


def test_special_values_survive() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        for array in arrays.values():
            array[...] = values[item]

    arrays = {"f": ((), np.float32, np.float32), "b": ((), jnp.bfloat16, jnp.bfloat16)}
    for delivery in ("alias", "copy"):
        group = DataGroup(4, range(4), loader_arrays=arrays)
        with Dataloader(load, group, executor="inline", delivery=delivery, end_at=("epoch", 1)) as loader:
            (batch,) = loader
            assert np.asarray(batch.arrays["f"]).tobytes() == values.tobytes()
            assert np.asarray(batch.arrays["b"]).tobytes() == values.astype(jnp.bfloat16).tobytes()
