"""Slots are imported by the function beneath `jax.dlpack.from_dlpack`, where that can be relied on."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from hydrax_gpu._place import direct
from hydrax_gpu._place.dlpack import to_jax


@pytest.fixture(autouse=True)
def _tried_anew() -> Iterator[None]:
    direct.importer.cache_clear()
    yield
    direct.importer.cache_clear()


def aligned(shape: tuple[int, ...], dtype: Any, offset: int = 0) -> np.ndarray[Any, Any]:
    """An array that begins `offset` bytes after a 64-byte boundary."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(dtype).reshape(shape)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What JAX's public function was given."""
    given: list[Any] = []
    original = jax.dlpack.from_dlpack

    def from_dlpack(array: Any, **options: Any) -> Any:
        given.append(array)
        return original(array, **options)

    monkeypatch.setattr(jax.dlpack, "from_dlpack", from_dlpack)
    return given


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "bfloat16", "complex64"])
def test_memory_is_shared_and_let_go_of_at_once(dtype: str, public: list[Any]) -> None:
    assert direct.importer(0) is not None, "this version of JAX is one that we know"
    public.clear()
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = aligned((3, 5), kind)
    array[1] = 1
    out = to_jax(array)
    assert bool(public) == (kind.itemsize > 4)
    assert out.dtype == kind
    assert not out.weak_type
    assert out.unsafe_buffer_pointer() == array.ctypes.data
    np.testing.assert_array_equal(np.asarray(out), array)
    gone = weakref.ref(array.base)
    public.clear()
    del array
    assert gone() is not None
    del out
    assert gone() is None


def test_what_jax_would_have_to_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="aligned"):
        to_jax(aligned((4, 4), np.float32, 4))


def copying(convert: Any) -> Any:
    return lambda capsule, *rest: convert(capsule, *rest).copy()


def leaking(convert: Any, kept: list[Any]) -> Any:
    def keep(capsule: Any, *rest: Any) -> Any:
        kept.append(convert(capsule, *rest))
        return kept[-1]

    return keep


@pytest.mark.parametrize("what", ["is not there", "takes something else", "copies", "leaks"])
def test_a_jax_that_we_do_not_know_is_asked_by_its_public_function(
    what: str, public: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = direct._beneath()
    kept: list[Any] = []

    def of_old_versions(capsule: Any) -> Any:
        raise AssertionError("it is called with more than that")

    def beneath() -> Any:
        if what == "is not there":
            raise AttributeError(what)
        return {"takes something else": of_old_versions, "copies": copying(known), "leaks": leaking(known, kept)}[what]

    monkeypatch.setattr(direct, "_beneath", beneath)
    array = aligned((2, 2), np.float32)
    with caplog.at_level(logging.INFO, "hydrax_gpu"):
        first, second = to_jax(array), to_jax(array)
    assert len(public) >= 2
    assert first.unsafe_buffer_pointer() == second.unsafe_buffer_pointer() == array.ctypes.data
    assert len([record for record in caplog.records if "public function" in record.getMessage()]) == 1
