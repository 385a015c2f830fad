"""A `DataGroup` is a sequence of descriptors, and refuses what would load something else than was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import ArraySpec, DataGroup
from hydrax_gpu.group import data_of, groups_of, layout_of, plan_of

ARRAYS = {"x": ((2,), np.uint8, np.float32)}


def group(size: int = 4, data: Any = range(10), **options: Any) -> DataGroup[Any]:
    return DataGroup(size, data, loader_arrays=options.pop("loader_arrays", ARRAYS), **options)


class Lazy(Sequence[str]):
    """Descriptors that are made when asked for; counts how often."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: Any) -> Any:
        self.asked += 1
        if isinstance(index, slice):
            return [f"file {i}" for i in range(6)[index]]
        return f"file {range(6)[index]}"


# What it holds.


def test_a_group_is_a_sequence_of_its_descriptors() -> None:
    names = ["a", "b", "c", "d", "c"]
    it = group(2, names)
    assert isinstance(it, Sequence)
    assert len(it) == 5 and list(it) == names and list(reversed(it)) == names[::-1]
    assert it[0] == "a" and it[-1] == "c" and it[1:3] == ["b", "c"]
    assert "d" in it and "e" not in it
    assert it.index("c") == 2 and it.count("c") == 2
    with pytest.raises(IndexError):
        it[5]


def test_a_sized_sequence_is_kept_and_not_copied() -> None:
    for data in (["a", "b"], ("a", "b"), range(2), np.arange(2), Lazy()):
        assert data_of(group(2, data)) is data


def test_a_lazy_sequence_is_not_gone_through() -> None:
    lazy = Lazy()
    it = group(2, lazy)
    assert lazy.asked == 0
    assert it[4] == "file 4" and lazy.asked == 1


def test_any_other_iterable_is_made_a_list_once() -> None:
    def names() -> Iterator[str]:
        yield from "abc"

    for data in (names(), iter("abc"), map(str, "abc"), {"a": 1, "b": 2, "c": 3}.keys()):
        it = group(2, data)
        assert list(it) == ["a", "b", "c"] and list(it) == ["a", "b", "c"]


def test_items_of_a_group_may_be_a_group() -> None:
    assert list(group(2, group(3, ["xyz"] * 4))) == ["xyz"] * 4


def test_properties_say_what_was_given() -> None:
    it = group(3, seed=7, shuffle_first=True, shuffle_later="batchwise", remainder="pad", weight=0.5)
    assert (it.batch_size, it.seed, it.shuffle_first) == (3, 7, True)
    assert (it.shuffle_later, it.remainder, it.weight) == ("batchwise", "pad", 0.5)
    assert repr(it) == "DataGroup(10 items, batch_size=3, arrays: x)"


def test_defaults_of_the_arguments() -> None:
    it = group()
    assert (it.seed, it.shuffle_first, it.shuffle_later, it.remainder, it.weight) == (0, False, "default", "drop", None)
    assert plan_of(it).shuffle_later == "itemwise", "what the default stands for"


def test_layouts_and_size_are_those_of_the_arrays() -> None:
    it = group(4, loader_arrays={"x": ((2,), "u1", "f4"), "y": ArraySpec((), "i4", "i4")})
    assert it.loader_layouts == {
        "x": ((4, 2), np.dtype("u1"), np.dtype("f4"), 0, 8),
        "y": ((4,), np.dtype("i4"), np.dtype("i4"), 256, 4),
    }
    assert it.loader_layouts is it.loader_layouts
    assert it.loader_size == layout_of(it).nbytes == 512
    with pytest.raises(TypeError):
        it.loader_layouts["z"] = ()  # type: ignore[index]


@pytest.mark.parametrize(
    ("items", "drop", "pad", "short"), [(4, 1, 1, 1), (5, 1, 2, 2), (7, 1, 2, 2), (8, 2, 2, 2), (9, 2, 3, 3)]
)
def test_batch_count_for_each_remainder(items: int, drop: int, pad: int, short: int) -> None:
    counts = [group(4, range(items), remainder=remainder).batch_count for remainder in ("drop", "pad", "short")]
    assert counts == [drop, pad, short]


def test_fewer_items_than_a_batch_are_kept_by_pad_and_short() -> None:
    assert group(4, range(3), remainder="pad").batch_count == 1
    assert group(4, range(3), remainder="short").batch_count == 1


@pytest.mark.parametrize("weight", [1, 0.25, Fraction(1, 3)])
def test_weights_are_kept_as_given(weight: float | Fraction) -> None:
    assert group(weight=weight).weight == weight and type(group(weight=weight).weight) is type(weight)


# What it refuses.


@pytest.mark.parametrize("data", ["files", b"files", {"a": 1}, {"a"}, frozenset("a")])
def test_data_that_looks_like_a_sequence_of_items_and_is_none_is_refused(data: Any) -> None:
    with pytest.raises(TypeError) as caught:
        group(1, data)
    assert str(caught.value) == (
        f"data: got a {type(data).__name__}, wanted a sequence of item descriptors (for a dict: list(d.items()))"
    )


@pytest.mark.parametrize("data", [3, None, object()])
def test_data_that_cannot_be_gone_through_is_refused(data: Any) -> None:
    with pytest.raises(TypeError) as caught:
        group(1, data)
    assert str(caught.value) == (
        f"data: got {type(data).__name__}, wanted a sequence or an iterable of item descriptors"
    )


def test_an_iterable_that_raises_a_type_error_of_its_own_is_not_blamed_for_being_none() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise TypeError("a mistake inside the generator")

    with pytest.raises(TypeError, match="a mistake inside the generator"):
        group(1, broken())


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"size": 0}, ValueError, "batch_size: got 0, wanted at least 1"),
        ({"size": -3}, ValueError, "batch_size: got -3, wanted at least 1"),
        ({"size": 2.0}, TypeError, "batch_size: got 2.0, wanted an integer"),
        ({"size": True}, TypeError, "batch_size: got True, wanted an integer"),
        ({"size": "4"}, TypeError, "batch_size: got '4', wanted an integer"),
        ({"seed": 1.5}, TypeError, "seed: got 1.5, wanted an integer"),
        ({"seed": None}, TypeError, "seed: got None, wanted an integer"),
        ({"seed": -1}, ValueError, "seed must be in [0, 2**64), got -1. Reduce it modulo 2**64."),
        ({"seed": 2**64}, ValueError, f"seed must be in [0, 2**64), got {2**64}. Reduce it modulo 2**64."),
        ({"weight": "3"}, TypeError, "weight: got '3', wanted a number or None"),
        ({"weight": True}, TypeError, "weight: got True, wanted a number or None"),
        (
            {"shuffle_later": "always"},
            ValueError,
            "shuffle_later: got 'always', wanted one of 'default', 'repeat', 'reseed', 'itemwise', 'batchwise'",
        ),
        ({"remainder": None}, ValueError, "remainder: got None, wanted one of 'drop', 'pad', 'short'"),
        (
            {"loader_arrays": [("x", ((), "u1", "u1"))]},
            TypeError,
            "loader_arrays: got list, wanted a dict {name: (item_shape, numpy_dtype, jax_dtype)}",
        ),
        (
            {"loader_arrays": {}},
            ValueError,
            "got no arrays, wanted at least one {name: (item_shape, numpy_dtype, jax_dtype)}",
        ),
        (
            {"data": []},
            ValueError,
            "a group needs between 1 and 2**62 items, got 0. Leave an empty group out.",
        ),
        (
            {"data": range(3)},
            ValueError,
            "batch_size 4 is more than the 3 items of the group, and remainder='drop' leaves out the batch that they "
            "do not fill: no batch is left. Use remainder='pad' or 'short', or a batch_size of at most 3.",
        ),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        group(**options)
    assert str(caught.value) == text
    assert type(caught.value) is kind


def test_numpy_integers_are_integers() -> None:
    it = group(np.int32(4), seed=np.uint64(2**63))
    assert type(it.batch_size) is int and type(it.seed) is int
    assert (it.batch_size, it.seed) == (4, 2**63)


def test_arguments_after_data_have_names() -> None:
    with pytest.raises(TypeError):
        DataGroup(4, range(10), ARRAYS)  # type: ignore[misc,call-arg]


# Several groups.


def test_one_group_or_any_iterable_of_them() -> None:
    a, b = group(), group()
    assert groups_of("training", a) == (a,)
    assert groups_of("training", [a, b]) == (a, b) == groups_of("training", iter((a, b)))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (3, TypeError, "training: got int, wanted a DataGroup or several"),
        (None, TypeError, "training: got NoneType, wanted a DataGroup or several"),
        ([[1, 2]], TypeError, "training: got list among the groups, wanted DataGroups"),
        ((), ValueError, "training: got no DataGroup, wanted at least one"),
    ],
)
def test_what_is_no_group_is_refused(value: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        groups_of("training", value)
    assert str(caught.value) == text
