"""Every member of a batch: its arrays, items, additional data, numbers, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import Batch, DataGroup, Dataloader, TrainingBatch, ValidationBatch
from tests.loaders import fill, fill_and_tell, fill_and_tell_of_odd, joined, record

ARRAYS = {"x": ((2,), np.uint8, jnp.bfloat16), "y": ((), np.int32, np.int32)}


def batches(load: Any, training: Any, **options: Any) -> list[Any]:
    """The batches of a run; `delivery="copy"` is what makes it safe to keep them."""
    options = {"executor": "inline", "delivery": "copy", "end_at": ("epoch", 1)} | options
    with Dataloader(load, training, **options) as loader:
        return list(loader)


def group(data: Any = range(10, 20), size: int = 4, **options: Any) -> DataGroup[Any]:
    return DataGroup(size, data, loader_arrays=options.pop("loader_arrays", ARRAYS), **options)


@pytest.fixture(scope="module")
def batch() -> TrainingBatch[Any]:
    """The second of two batches, of items 14 to 17 at indices 4 to 7."""
    return batches(fill_and_tell, group())[1]


@pytest.fixture(scope="module")
def padded() -> TrainingBatch[Any]:
    return batches(fill_and_tell, group(remainder="pad"))[-1]


@pytest.fixture(scope="module")
def short() -> TrainingBatch[Any]:
    return batches(fill_and_tell, group(remainder="short"))[-1]


# Arrays.


def test_arrays_are_jax_arrays_of_the_declared_dtypes_and_shapes(batch: Batch[Any]) -> None:
    assert list(batch.arrays) == ["x", "y"]
    x, y = batch.arrays["x"], batch.arrays["y"]
    assert isinstance(x, jax.Array) and isinstance(y, jax.Array)
    assert (x.shape, x.dtype) == ((4, 2), jnp.bfloat16)
    assert (y.shape, y.dtype) == ((4,), np.int32)
    assert x.astype(np.int32).tolist() == [[i, i] for i in range(14, 18)]
    assert y.tolist() == [14, 15, 16, 17]


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float16, np.int32])
def test_a_jax_dtype_other_than_the_numpy_dtype_is_converted_to(dtype: Any, delivery: Any) -> None:
    it = group(loader_arrays={"x": ((3,), np.uint8, dtype)})
    (first,) = batches(fill, it, end_at=("batch", 1), delivery=delivery)
    assert first.arrays["x"].dtype == dtype
    assert np.asarray(first.arrays["x"]).astype(int).tolist() == [[i] * 3 for i in range(10, 14)]


def test_arrays_cannot_be_replaced(batch: Batch[Any]) -> None:
    assert isinstance(batch.arrays, MappingProxyType)
    with pytest.raises(TypeError):
        batch.arrays["x"] = batch.arrays["y"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        batch.arrays = {}  # type: ignore[misc,assignment]


def test_get_array_is_arrays_by_name(batch: Batch[Any]) -> None:
    assert batch.get_array("x") is batch.arrays["x"]
    with pytest.raises(KeyError) as caught:
        batch.get_array("z")
    assert caught.value.args == ("no array 'z'; the batch has x, y",)


def test_a_batch_and_its_arrays_cannot_be_given_new_attributes(batch: Batch[Any]) -> None:
    with pytest.raises(AttributeError):
        batch.note = "kept"  # type: ignore[attr-defined]


def test_layouts_are_those_of_the_group(batch: Batch[Any]) -> None:
    assert batch.layouts == batch.group.loader_layouts
    assert batch.layouts == {
        "x": ((4, 2), np.dtype(np.uint8), np.dtype(jnp.bfloat16), 0, 8),
        "y": ((4,), np.dtype(np.int32), np.dtype(np.int32), 256, 4),
    }
    for name, (shape, _, dtype, _, count) in batch.layouts.items():
        assert batch.arrays[name].shape == shape and batch.arrays[name].dtype == dtype
        assert batch.arrays[name].size == count


# Items.


def test_group_and_indices_say_where_the_batch_is_from() -> None:
    it = group()
    second = batches(fill, it)[1]
    assert second.group is it
    assert second.group_index == 1
    assert list(second.indices) == [4, 5, 6, 7]


def test_data_is_the_sequence_of_descriptors(batch: Batch[Any]) -> None:
    data = batch.data
    assert isinstance(data, Sequence) and len(data) == 4
    assert list(data) == [14, 15, 16, 17] and list(reversed(data)) == [17, 16, 15, 14]
    assert data[0] == 14 and data[3] == 17 and data[-1] == 17 and data[-4] == 14
    assert list(data[1:3]) == [15, 16] and list(data[::-2]) == [17, 15] and list(data[9:]) == []
    assert 16 in data and 10 not in data and data.index(16) == 2
    assert repr(data) == "[14, 15, 16, 17]"


@pytest.mark.parametrize("index", [4, 100, -5])
def test_rows_that_do_not_exist_are_index_errors(batch: Batch[Any], index: int) -> None:
    text = f"index {index} is out of range for a batch of 4 rows"
    for look_up in (batch.data.__getitem__, batch.get_data, lambda i: batch.get_additional("item", i)):
        with pytest.raises(IndexError) as caught:
            look_up(index)
        assert str(caught.value) == text


def test_get_data_is_data_by_index(batch: Batch[Any]) -> None:
    assert [batch.get_data(i) for i in range(-4, 4)] == [14, 15, 16, 17] * 2


def test_descriptors_may_be_anything_and_are_the_same_objects() -> None:
    class Item:
        pass

    items = [Item() for _ in range(4)]

    def load(item: Item, arrays: Any, seed: int | None) -> None:
        fill(items.index(item), arrays, seed)

    (only,) = batches(load, group(items))
    assert all(a is b for a, b in zip(only.data, items, strict=True))
    assert only.arrays["y"].tolist() == [0, 1, 2, 3]


# Additional data.


def test_additional_is_a_read_only_mapping_with_a_value_a_row(batch: Batch[Any]) -> None:
    assert isinstance(batch.additional, MappingProxyType)
    assert {key: list(values) for key, values in batch.additional.items()} == {
        "item": [14, 15, 16, 17],
        "odd": [None, "odd 15", None, "odd 17"],
    }
    assert batch.additional is batch.additional
    with pytest.raises(TypeError):
        batch.additional["item"] = []  # type: ignore[index]


def test_items_that_returned_nothing_have_none() -> None:
    first = batches(fill_and_tell_of_odd, group())[0]
    assert list(first.additional["item"]) == [None, 11, None, 13]


def test_a_loader_function_that_returns_nothing_gives_no_additional_data() -> None:
    first = batches(fill, group())[0]
    assert isinstance(first.additional, Mapping) and dict(first.additional) == {}
    assert list(first.get_additional("item")) == [None] * 4
    assert first.get_additional("item", 2) is None
    assert first.get_additional("item", 2, default=7) == 7


def test_get_additional_of_all_rows(batch: Batch[Any]) -> None:
    assert list(batch.get_additional("item")) == [14, 15, 16, 17]
    assert list(batch.get_additional("odd")) == [None, "odd 15", None, "odd 17"]
    assert list(batch.get_additional("odd", default="even")) == ["even", "odd 15", "even", "odd 17"]
    assert list(batch.get_additional("absent")) == [None] * 4
    assert list(batch.get_additional("absent", default=0)) == [0] * 4


def test_get_additional_of_one_row(batch: Batch[Any]) -> None:
    assert [batch.get_additional("item", i) for i in range(-4, 4)] == [14, 15, 16, 17] * 2
    assert batch.get_additional("odd", 0) is None
    assert batch.get_additional("odd", 0, default="even") == "even"
    assert batch.get_additional("odd", 1, default="even") == "odd 15"
    assert batch.get_additional("absent", -1, default="none") == "none"


@pytest.mark.parametrize("key", ["item", "absent"])
def test_a_default_does_not_stand_for_a_row_that_does_not_exist(batch: Batch[Any], key: str) -> None:
    for index in (4, -5):
        with pytest.raises(IndexError):
            batch.get_additional(key, index, default=0)


def test_a_default_is_given_by_name_only(batch: Batch[Any]) -> None:
    with pytest.raises(TypeError):
        batch.get_additional("odd", 0, "even")  # type: ignore[misc]


def test_values_that_are_false_are_values() -> None:
    def load(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        fill(item, arrays, seed)
        return {"zero": 0, "empty": "", "no": False}

    first = batches(load, group())[0]
    assert first.get_additional("zero", default=1) == [0] * 4
    assert first.get_additional("empty", 0, default="full") == ""
    assert first.get_additional("no", 0, default=True) is False


def test_values_may_be_arrays() -> None:
    def load(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        fill(item, arrays, seed)
        return {"box": np.full(3, item)}

    first = batches(load, group())[0]
    boxes = first.get_additional("box", default=np.zeros(3))
    assert [box.tolist() for box in boxes] == [[i] * 3 for i in range(10, 14)]
    assert first.get_additional("box", 1).tolist() == [11] * 3


# Padded and short batches.


def test_a_padded_batch_repeats_its_rows_and_marks_them(padded: Batch[Any]) -> None:
    assert list(padded.indices) == [8, 9, 8, 9]
    assert list(padded.data) == [18, 19, 18, 19]
    assert padded.arrays["y"].tolist() == [18, 19, 18, 19]
    assert padded.arrays["x"].astype(int).tolist() == [[18, 18], [19, 19]] * 2
    assert list(padded.additional["odd"]) == [None, "odd 19"] * 2
    assert list(padded.get_additional("item", default=0)) == [18, 19, 18, 19]
    assert padded.valid.tolist() == [True, True, False, False]
    assert padded.valid.dtype == np.bool_


def test_an_odd_number_of_rows_is_repeated_in_turn() -> None:
    (only,) = batches(fill_and_tell, group(range(3), 8, remainder="pad"))
    expected = [0, 1, 2, 0, 1, 2, 0, 1]
    assert only.arrays["y"].tolist() == expected
    assert list(only.indices) == list(only.data) == list(only.additional["item"]) == expected
    assert only.valid.tolist() == [True] * 3 + [False] * 5


def test_a_short_batch_has_fewer_rows_everywhere(short: TrainingBatch[Any]) -> None:
    assert {name: array.shape for name, array in short.arrays.items()} == {"x": (2, 2), "y": (2,)}
    assert short.arrays["y"].tolist() == [18, 19]
    assert list(short.indices) == [8, 9] and list(short.data) == [18, 19]
    assert list(short.additional["odd"]) == [None, "odd 19"]
    assert short.get_additional("absent", default=1) == [1, 1]
    assert short.valid.tolist() == [True, True]
    assert len(short.seeds) == 2
    assert short.layouts["y"][0] == (4,), "the layout is that of a whole batch"
    with pytest.raises(IndexError, match="index 2 is out of range for a batch of 2 rows"):
        short.get_data(2)


def test_all_rows_of_a_whole_batch_are_valid(batch: Batch[Any]) -> None:
    assert batch.valid.tolist() == [True] * 4


# Kinds and numbers.


@pytest.fixture(scope="module")
def run() -> list[Any]:
    """Three epochs of two training batches, and a validation pass of two batches after each."""
    arrays = {"x": ((), np.int32, np.int32), "seed": ((2,), np.uint32, np.uint32)}
    training = group(range(9), loader_arrays=arrays, seed=3, shuffle_first=True)
    validation = ("epoch", 1, group(range(100, 104), 2, loader_arrays=arrays))
    return batches(record, training, validation=validation, end_at=("epoch", 3))


def of_kind(run: list[Any], kind: type[Any]) -> Iterator[Any]:
    return (batch for batch in run if isinstance(batch, kind))


def test_a_batch_is_of_one_of_the_two_kinds(run: list[Any]) -> None:
    assert "".join(type(batch).__name__[0] for batch in run) == "TTVV" * 3
    for batch in run:
        assert isinstance(batch, Batch)
        assert batch.is_training is isinstance(batch, TrainingBatch)
        assert batch.is_validation is isinstance(batch, ValidationBatch)
        assert batch.is_training is not batch.is_validation


def test_numbers_of_training_batches(run: list[Any]) -> None:
    numbers = [(b.epoch, b.epoch_batch, b.batch_num, b.group_index) for b in of_kind(run, TrainingBatch)]
    assert numbers == [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 2, 0), (1, 1, 3, 1), (2, 0, 4, 0), (2, 1, 5, 1)]


def test_numbers_of_validation_batches(run: list[Any]) -> None:
    numbers = [
        (b.validation_epoch, b.validation_epoch_batch, b.validation_batch_num, b.group_index)
        for b in of_kind(run, ValidationBatch)
    ]
    assert numbers == [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 2, 0), (1, 1, 3, 1), (2, 0, 4, 0), (2, 1, 5, 1)]


def test_seeds_are_what_the_loader_function_was_called_with(run: list[Any]) -> None:
    seen: set[int] = set()
    for batch in of_kind(run, TrainingBatch):
        seeds = list(batch.seeds)
        assert [joined(words) for words in np.asarray(batch.arrays["seed"])] == seeds
        assert list(batch.additional["seed"]) == seeds
        assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
        assert type(batch.seed) is int and 0 <= batch.seed < 2**63
        seen.update(seeds, [batch.seed])
    assert len(seen) == 6 * 5, "no two are the same"


def test_validation_has_no_seeds(run: list[Any]) -> None:
    for batch in of_kind(run, ValidationBatch):
        assert [joined(words) for words in np.asarray(batch.arrays["seed"])] == [None, None]
        assert list(batch.get_additional("seed", default="none")) == ["none", "none"]
        assert not hasattr(batch, "seed") and not hasattr(batch, "seeds")


def test_repr_names_kind_number_epoch_and_arrays(run: list[Any]) -> None:
    assert repr(run[4]) == "<TrainingBatch 2 of epoch 1: x: int32[4], seed: uint32[4, 2]>"
    assert repr(run[3]) == "<ValidationBatch 1 of epoch 0: x: int32[2], seed: uint32[2, 2]>"


# What it is not.


@pytest.mark.parametrize("kind", [Batch, TrainingBatch, ValidationBatch])
def test_a_batch_cannot_be_constructed(kind: type[Any]) -> None:
    for arguments in ((), (None, 0, 0, [])):
        with pytest.raises(TypeError) as caught:
            kind(*arguments)
        assert str(caught.value) == (
            f"{kind.__name__} cannot be constructed: batches come from iterating over a Dataloader"
        )


def test_a_batch_is_uncached_and_there_is_no_cache(batch: Batch[Any]) -> None:
    assert batch.uncached is True
    with pytest.raises(RuntimeError, match="the DataGroup of this batch declares no cache"):
        batch.cache(dict(batch.arrays))
    with pytest.raises(RuntimeError):
        batch.cache({}, {"item": [1]}, persist=False)


def test_members_stay_after_the_loader_is_gone() -> None:
    first = batches(fill_and_tell, group(), delivery="alias", depth=3)[0]
    assert first.arrays["y"].tolist() == [10, 11, 12, 13]
    assert first.get_additional("item", 0) == 10 and first.data[-1] == 13
