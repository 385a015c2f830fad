"""Arrays with a decode, as the loader's user sees them."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hydrax_gpu import (
    ArraySpec,
    DataGroup,
    Dataloader,
    DecodeError,
    Dequantize,
    ErrorPolicy,
    LoaderError,
    Normalize,
    Oklab,
    PadRagged,
    UnpackBits,
)
from hydrax_gpu._kernels import choice, sources
from hydrax_gpu._spec import ALIGNMENT, Layout
from tests import loaders

EXECUTORS = pytest.mark.parametrize("executor", ["process", "thread", "inline"])
BY = pytest.mark.parametrize("by", ["auto", "numpy"])

ARRAYS: dict[str, Any] = {
    "plain": ((2,), np.uint8, np.float32),
    "image": ArraySpec((5, 4, 3), np.uint8, np.float32, Normalize((1, 2, 3), (4, 5, 6), unit=255, order="HWC->CHW")),
    "scalar": ArraySpec((), np.int16, np.float16, Normalize(std=2)),
    "mask": ArraySpec((3, 2), np.uint8, np.bool_, UnpackBits(width=13)),
    "classes": ArraySpec((3,), np.uint8, np.int32, UnpackBits(4, order="little", values=range(100, 116))),
    "codes": ArraySpec((2, 5), np.int8, ml_dtypes.bfloat16, Dequantize("scales", block=4)),
    "nibbles": ArraySpec((2, 3), np.uint8, np.float32, Dequantize("scales", block=4, bits=4)),
    "scales": ((2, 2), np.float16, np.float32),
    "tokens": ArraySpec((9, 2), np.int32, np.float32, PadRagged("splits", 9, pad=-1, mask="m", segment_ids="s")),
    "packed": ArraySpec((9,), np.uint8, np.uint8, PadRagged("splits", 9, lines=1, positions="p")),
    "splits": ((4,), np.int32, np.int32),
    "text": ArraySpec((9,), np.int16, np.int16, PadRagged("length", 9, pad=7)),
    "length": ((), np.int32, np.int32),
    "colour": ArraySpec((4, 3), np.uint8, np.float32, Oklab()),
    "lab": ArraySpec((3, 4), np.float32, np.uint8, Oklab("CHW->HWC", inverse=True)),
}


def expected(item: int) -> dict[str, Any]:
    """The arrays of an item, computed in the plainest way there is, in float64."""
    wire = {
        name: loaders.record_of(item, name, ArraySpec.of(name, spec).shape, ArraySpec.of(name, spec).numpy_dtype)
        for name, spec in ARRAYS.items()
    }
    result: dict[str, Any] = {name: wire[name] for name in ("plain", "scales", "splits", "length")}
    result["image"] = ((wire["image"] / 255 - [1, 2, 3]) / [4, 5, 6]).transpose(2, 0, 1)
    result["scalar"] = wire["scalar"] / 2
    result["mask"] = np.unpackbits(wire["mask"], axis=-1)[:, :13].astype(bool)
    result["classes"] = np.array([100 + part for byte in wire["classes"] for part in (byte & 15, byte >> 4)])
    scales = np.repeat(wire["scales"].astype(np.float64), 4, axis=-1)
    result["codes"] = wire["codes"] * scales[:, :5]
    nibbles = np.stack([wire["nibbles"] & 15, wire["nibbles"] >> 4], -1).reshape(2, 6).astype(int)
    result["nibbles"] = np.where(nibbles > 7, nibbles - 16, nibbles) * scales[:, :6]
    ends = wire["splits"]
    sequences = [range(ends[k], ends[k + 1]) for k in range(3)]
    tokens, mask, ids = np.full((3, 9, 2), -1), np.zeros((3, 9), bool), np.zeros((3, 9), int)
    for line, each in enumerate(sequences):
        tokens[line, : len(each)] = wire["tokens"][each]
        mask[line, : len(each)] = True
        ids[line, : len(each)] = 1
    result |= {"tokens": tokens, "m": mask, "s": ids}
    total = ends[-1]
    result["packed"] = np.array([*wire["packed"][:total], *[0] * (9 - total)])
    result["p"] = np.array([*(k for each in sequences for k in range(len(each))), *[0] * (9 - total)])
    result["text"] = np.array([*wire["text"][: wire["length"]], *[7] * (9 - wire["length"])])
    return result


@pytest.fixture
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Who does the kernels' work."""
    monkeypatch.setenv(choice.SWITCH, request.param)
    choice.choose.cache_clear()
    yield request.param
    choice.choose.cache_clear()


def group(arrays: Any = ARRAYS, data: Any = range(10), **options: Any) -> DataGroup[Any]:
    return DataGroup(options.pop("size", 4), data, loader_arrays=arrays, **options)


def loader(training: Any, load: Any = loaders.writes_records, **options: Any) -> Dataloader[Any]:
    return Dataloader(load, training, **{"executor": "inline", "end_at": ("epoch", 1)} | options)


# What the batch holds.


@EXECUTORS
@pytest.mark.parametrize("by", ["auto", "numpy"], indirect=True)
@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_a_batch_holds_what_its_arrays_decodes_say(executor: Any, by: str, delivery: Any) -> None:
    training = group(remainder="pad")
    with loader(training, executor=executor, delivery=delivery, loader_count=2) as it:
        for batch in it:
            assert list(batch.arrays) == [
                *("plain", "image", "scalar", "mask", "classes", "codes", "nibbles", "scales", "tokens", "m", "s"),
                *("packed", "p", "splits", "text", "length", "colour", "lab"),
            ]
            for row, item in enumerate(batch.data):
                for name, values in expected(item).items():
                    got = np.asarray(batch.arrays[name])[row]
                    assert got.shape == np.shape(values), name
                    rounding = {"scalar": 1e-3, "codes": 1e-2}.get(name, 1e-5)
                    np.testing.assert_allclose(got.astype(np.float64), values, rtol=rounding, atol=1e-6, err_msg=name)
            for name, (shape, _, jax_dtype, _, _) in batch.layouts.items():
                assert batch.arrays[name].shape == shape
                assert batch.arrays[name].dtype == jax_dtype
            del batch
    report = it.report()
    assert not report.bad
    assert report.kernels.startswith("NumPy (HYDRAX_GPU_KERNELS=numpy)" if by == "numpy" else ("host library", "NumPy"))
    assert f"decoding      by {report.kernels}" in str(report)


def test_a_short_last_batch_is_decoded_too() -> None:
    with loader(group({"x": ArraySpec((2,), np.uint8, np.float32, Normalize(1))}, remainder="short")) as it:
        rows = [row for batch in it for row in np.asarray(batch.arrays["x"]).tolist()]
    assert rows == [(loaders.record_of(item, "x", (2,), np.uint8) - 1.0).tolist() for item in range(10)]


def test_a_placement_function_is_given_what_the_batch_holds() -> None:
    import jax

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        assert {name: view.shape for name, view in arrays.items()} == {name: each[0] for name, each in layouts.items()}
        return {name: jax.device_put(view.copy()) for name, view in arrays.items()}

    arrays = {"x": ArraySpec((2,), np.uint8, np.bool_, UnpackBits())}
    with loader(group(arrays), placement_func=place) as it:
        assert [batch.arrays["x"].shape for batch in it] == [(4, 16)] * 2


def test_the_loader_function_sees_what_is_declared() -> None:
    seen: list[Any] = []

    def load(item: int, arrays: Any, seed: int | None) -> None:
        seen.append({name: (array.shape, array.dtype, array.flags.writeable) for name, array in arrays.items()})
        loaders.writes_records(item, arrays, seed)

    with loader(group(), load) as it:
        next(it)
    declared = {name: ArraySpec.of(name, spec) for name, spec in ARRAYS.items()}
    assert seen[0] == {name: (spec.shape, spec.numpy_dtype, True) for name, spec in declared.items()}


def test_wire_regions_come_first_and_arrays_without_a_decode_are_not_there_twice() -> None:
    layout = Layout.build(4, ARRAYS)
    assert [array.name for array in layout.wire] == list(ARRAYS)
    end = 0
    for array in layout.wire:
        assert array.offset % ALIGNMENT == 0
        assert array.offset >= end
        end = array.offset + array.nbytes
    assert end <= layout.wire_nbytes < end + ALIGNMENT
    own = [array for array in layout.arrays if array not in layout.wire]
    assert {array.name for array in layout.arrays if array in layout.wire} == {"plain", "scales", "splits", "length"}
    end = layout.wire_nbytes
    for array in own:
        assert array.offset % ALIGNMENT == 0
        assert array.offset >= end
        end = array.offset + array.nbytes
    assert end <= layout.nbytes < end + ALIGNMENT
    assert group().loader_size == layout.nbytes


def test_a_layout_without_decodes_has_one_region() -> None:
    layout = Layout.build(4, {"x": ((3,), np.uint8, np.float32)})
    assert layout.wire == layout.arrays
    assert layout.wire_nbytes == layout.nbytes
    assert not layout.decodes


# Bad rows.

RAGGED: dict[str, Any] = {
    "tokens": ArraySpec((9,), np.int32, np.int32, PadRagged("splits", 9, lines=2)),
    "splits": ((4,), np.int32, np.int32),
}
ERROR = "array 'tokens': row splits 2 and 3 are "


@EXECUTORS
@pytest.mark.parametrize("by", ["auto", "numpy"], indirect=True)
def test_an_item_that_cannot_be_decoded_is_a_bad_one(executor: Any, by: str) -> None:
    it = loader(group(RAGGED), loaders.WritesBadSplits(6), executor=executor)
    with it:
        assert [list(batch.data) for batch in it] == [[0, 1, 2, 3]]
    (bad,) = it.report().bad
    assert bad.item == 6
    assert bad.error.startswith(f"hydrax_gpu.errors.DecodeError: {ERROR}")


def test_the_other_rows_of_its_chunk_are_decoded() -> None:
    it = loader(group(RAGGED, size=8, data=range(16)), loaders.WritesBadSplits(0, 3, 4, 15), on_error="replace")
    with it:
        for batch in it:
            for row, item in enumerate(batch.data):
                splits = np.asarray(batch.arrays["splits"])[row]
                given = loaders.record_of(item, "tokens", (9,), np.int32)[: splits[-1]]
                got = np.asarray(batch.arrays["tokens"])[row].ravel()
                assert sorted(got[got != 0].tolist()) == sorted(given[given != 0].tolist())
    assert sorted(bad.item for bad in it.report().bad) == [0, 3, 4, 15]
    assert it.report().replaced_items == 4


@EXECUTORS
def test_decoding_again_takes_loading_again(executor: Any) -> None:
    policy = ErrorPolicy(retries=2)
    load = loaders.WritesBadSplits(1, 6, times=2)
    it = loader(group(RAGGED), load, executor=executor, on_error=policy)
    with it:
        tries = [batch.get_additional("try") for batch in it]
    assert tries == [[1, 3, 1, 1], [1, 1, 3, 1]]
    assert not it.report().bad


def test_what_never_can_be_decoded_is_tried_as_often_as_it_is_said() -> None:
    load = loaders.WritesBadSplits(6)
    it = loader(group(RAGGED), load, on_error=ErrorPolicy(retries=2))
    with it:
        assert len(list(it)) == 1
    assert load.tries[6] == 3
    (bad,) = it.report().bad
    assert bad.error.endswith("(tried 3 times)")


def test_an_item_that_fails_to_load_and_then_to_decode_has_one_budget() -> None:
    load = loaders.WritesBadSplits(6)

    def fails_first(item: int, arrays: Any, seed: int | None) -> Any:
        result = load(item, arrays, seed)
        if item == 6 and load.tries[6] == 1:
            raise ConnectionError("not there yet")
        return result

    it = loader(group(RAGGED), fails_first, on_error=ErrorPolicy(retries=2))
    with it:
        assert len(list(it)) == 1
    assert load.tries[6] == 3


@EXECUTORS
def test_raising_names_the_item_and_the_array(executor: Any) -> None:
    with loader(group(RAGGED), loaders.WritesBadSplits(2), executor=executor, on_error="raise") as it:
        with pytest.raises(LoaderError, match="row splits 2 and 3") as caught:
            next(it)
        assert isinstance(caught.value.__cause__, DecodeError)


# Declarations.


A = ArraySpec


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": A((3,), np.float64, np.float32, Normalize())}, "Normalize: got numpy_dtype float64, wanted uint8"),
        ({"x": A((3,), np.uint8, np.int32, Normalize())}, "Normalize: got jax_dtype int32, wanted uint8 or float"),
        ({"x": A((8, 4), np.uint8, np.float32, Normalize((1, 2, 3)))}, "got 3 means or standard deviations, but"),
        ({"x": A((), np.uint8, np.float32, Normalize((1, 2, 3)))}, "has no channels by order 'HWC'"),
        ({"x": A((3,), np.uint8, np.float32, Normalize(order="HWC->CHW"))}, "needs items of two axes or more"),
        ({"x": A((3,), np.int8, np.bool_, UnpackBits())}, "UnpackBits: got numpy_dtype int8, wanted uint8"),
        ({"x": A((3,), np.uint8, np.bool_, UnpackBits(2))}, "UnpackBits: got jax_dtype bool, wanted uint8 or"),
        ({"x": A((), np.uint8, np.bool_, UnpackBits())}, "got shape (), wanted a last axis of bytes"),
        ({"x": A((3,), np.uint8, np.bool_, UnpackBits(width=16))}, "16 elements of 1 bits need 2 bytes, but the"),
        ({"x": A((3,), np.uint8, np.uint8, UnpackBits(values=(0, 256)))}, "not all of the values (0.0, 256.0)"),
        ({"x": A((4,), np.int8, np.float32, Dequantize("s", 2))}, "got 's', wanted another declared array: there"),
        ({"x": A((4,), np.int8, np.float32, Dequantize("x", 2))}, "got 'x', wanted another declared array"),
        (
            {"x": A((4,), np.int8, np.float32, Dequantize("s", 2)), "s": ((3,), np.float32, np.float32)},
            "array 's' has shape (3,), wanted (2,): one scale for each block of 2 of (4,)",
        ),
        (
            {"x": A((4,), np.int8, np.float32, Dequantize("s", 2)), "s": ((2,), np.int32, np.int32)},
            "Dequantize: got numpy_dtype of 's' int32, wanted float16 or bfloat16 or float32",
        ),
        ({"x": A((4,), np.int8, np.float32, Dequantize("s", 2, 4))}, "got numpy_dtype int8, wanted uint8"),
        ({"x": A((4,), np.int8, np.int8, PadRagged("s", 2)), "s": ((1,), np.int32, np.int32)}, "(n + 1,) for n"),
        ({"x": A((4,), np.int8, np.int8, PadRagged("s", 2)), "s": ((), np.uint8, np.int32)}, "wanted int32 or int"),
        ({"x": A((4,), np.int8, np.int8, PadRagged("s", 2, 300)), "s": ((), "i4", "i4")}, "300 is no number of"),
        ({"x": A((), np.int8, np.int8, PadRagged("s", 2)), "s": ((), "i4", "i4")}, "wanted a first axis of value"),
        ({"x": A((2,), "c16", "c16", PadRagged("s", 2)), "s": ((), "i4", "i4")}, "wanted one of 1, 2, 4 or 8"),
        (
            {"x": A((4,), np.int8, np.int8, PadRagged("s", 2, mask="s")), "s": ((), "i4", "i4")},
            "there is an array 's' already, wanted another name",
        ),
        (
            {
                "x": A((4,), np.int8, np.int8, PadRagged("s", 2, mask="m")),
                "z": A((4,), np.int8, np.int8, PadRagged("s", 2, mask="m")),
                "s": ((), "i4", "i4"),
            },
            "array 'z': PadRagged: there is an array 'm' already, wanted another name",
        ),
        ({"x": A((4, 4), np.uint8, np.float32, Oklab())}, "got shape (4, 4), wanted 3 channels as order 'HWC'"),
        ({"x": A((4, 3), np.int16, np.float32, Oklab())}, "Oklab: got numpy_dtype int16, wanted uint8 or float32"),
        ({"x": A((4, 3), np.float32, np.int8, Oklab(inverse=True))}, "got jax_dtype int8, wanted uint8 or flo"),
    ],
)  # fmt: skip
def test_a_decode_that_does_not_fit_is_refused_when_it_is_declared(arrays: Any, text: str) -> None:
    with pytest.raises(ValueError, match="array '") as caught:
        group(arrays)
    assert str(caught.value).startswith("array '")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Normalize("a"), TypeError, "Normalize: mean: got 'a', wanted a number"),
        (lambda: Normalize((1, 2), (1, 2, 3)), ValueError, "wanted as many means as standard deviations"),
        (lambda: Normalize(std=0), ValueError, "wanted finite float32 numbers"),
        (lambda: Normalize(std=()), ValueError, "Normalize: std: got no number"),
        (lambda: Normalize(unit=1e-300, std=1e-300), ValueError, "wanted finite float32 numbers"),
        (lambda: Normalize(order="CWH"), ValueError, "Normalize: order: got 'CWH', wanted one of 'HWC', 'CHW'"),
        (lambda: UnpackBits(3), ValueError, "UnpackBits: bits: got 3, wanted one of 1, 2, 4"),
        (lambda: UnpackBits(order="middle"), ValueError, "wanted one of 'big', 'little'"),
        (lambda: UnpackBits(width=0), ValueError, "UnpackBits: width: got 0, wanted at least 1"),
        (lambda: UnpackBits(values=(1, 2, 3)), ValueError, "wanted 2 numbers, one for each that 1 bits can hold"),
        (lambda: Dequantize("s", 0), ValueError, "Dequantize: block: got 0, wanted at least 1"),
        (lambda: Dequantize("s", 3, 4), ValueError, "got a block of 3, wanted an even one"),
        (lambda: Dequantize("s", 2, 5), ValueError, "Dequantize: bits: got 5, wanted one of 8, 4"),
        (lambda: Dequantize(7, 2), TypeError, "Dequantize: scales: got 7, wanted the name of an array"),
        (lambda: PadRagged("s", 2, lines=4000), ValueError, "got 4000 lines, wanted at most 2048"),
        (lambda: PadRagged("s", 2, lines=4, truncate=True), ValueError, "packed ones must fit"),
        (lambda: PadRagged("s", 2, mask=""), TypeError, "PadRagged: mask: got '', wanted the name of an array"),
        (lambda: PadRagged("s", 2.5), TypeError, "PadRagged: length: got 2.5, wanted an integer"),
        (lambda: Oklab("CHW->HWC"), ValueError, "Oklab: order: got 'CHW->HWC', wanted one of 'HWC', 'HWC->CHW'"),
    ],
)
def test_arguments_are_checked_at_once(make: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert text in str(caught.value)


def test_a_decode_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="array 'x': got decode='normalize', wanted Normalize, UnpackBits"):
        group({"x": ArraySpec((3,), np.uint8, np.float32, "normalize")})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, spec in ARRAYS.items() if isinstance(spec, ArraySpec)])
def test_decodes_can_be_compared_hashed_and_sent(name: str) -> None:
    decode = ARRAYS[name].decode
    again = pickle.loads(pickle.dumps(decode))
    assert again == decode
    assert hash(again) == hash(decode)


def test_numpy_arrays_are_taken_for_means_and_deviations() -> None:
    assert Normalize(np.array([1, 2, 3]), np.float32(2)) == Normalize((1.0, 2.0, 3.0), 2.0)


# Who does the work.


def test_what_is_not_decoded_costs_a_worker_nothing() -> None:
    arrays = {"x": ((3,), np.uint8, np.float32)}
    with loader(group(arrays), loaders.tells_modules, executor="process") as it:
        modules = set(next(it).get_additional("modules", 0))
    assert not [name for name in modules if "_kernels" in name or "decode" in name.split(".")]
    assert it.report().kernels == ""


@pytest.mark.parametrize("by", ["auto"], indirect=True)
def test_a_library_of_other_sources_is_not_used_and_that_is_said_once(
    by: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not sources.LIBRARY.exists():
        pytest.skip("the kernels' host library was not built on this machine, so it cannot be of other sources")
    monkeypatch.setattr(sources, "digest", lambda: "0" * 64)
    arrays = {"x": ArraySpec((3,), np.uint8, np.float32, Normalize(1))}
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        for _ in range(2):
            with loader(group(arrays)) as it:
                batch = next(it)
    assert np.asarray(batch.arrays["x"])[0].tolist() == (loaders.record_of(0, "x", (3,), np.uint8) - 1.0).tolist()
    (message,) = [record.getMessage() for record in caplog.records if "NumPy" in record.getMessage()]
    assert message.startswith("the kernels' host library was built from other sources: NumPy does the kernels' work")
    assert it.report().kernels == "NumPy (the kernels' host library was built from other sources)"


@pytest.mark.parametrize("by", ["auto"], indirect=True)
def test_without_a_library_numpy_does_the_work(
    by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sources, "LIBRARY", tmp_path / "none.so")
    assert choice.choose() == choice.Choice(None, "the kernels' host library was not built")
    assert "`python -m hydrax_gpu._kernels.build` builds it" in caplog.text
    choice.choose.cache_clear()
    (tmp_path / "none.so").write_bytes(b"no library")
    assert choice.choose().reason.startswith("the kernels' host library cannot be opened (")


@pytest.mark.parametrize("by", ["host", "cuda"], indirect=True)
def test_the_switch_is_checked(by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(sources, "LIBRARY", tmp_path / "none.so")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        choice.choose()
    assert str(caught.value).startswith(
        "HYDRAX_GPU_KERNELS=host, but the kernels' host library was not built; with a C++ compiler"
        if by == "host"
        else "environment variable HYDRAX_GPU_KERNELS: got 'cuda', wanted one of auto, host, numpy"
    )
