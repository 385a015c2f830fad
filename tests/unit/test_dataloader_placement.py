"""Placement as the user of a loader sees it, by the loader or by a function of the user's own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import (
    DataGroup,
    Dataloader,
    PlacementError,
)
from tests import loaders
from tests.small import group, loader, refused, rows


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Nothing may rest on the garbage collector's coming by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# Placement by the user.


def test_placement_func_is_given_arrays_layouts_additional_data_and_group() -> None:
    training, validation = group(remainder="pad"), group(range(100, 104))
    calls: list[DataGroup[Any]] = []

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        calls.append(group)
        assert isinstance(arrays, MappingProxyType) and list(arrays) == ["x", "y"]
        assert all(type(array) is np.ndarray for array in arrays.values())
        assert arrays["x"].shape == (4, 3) and arrays["x"].dtype == np.uint8
        assert layouts is group.loader_layouts
        assert isinstance(additional, MappingProxyType)
        assert list(additional["item"]) == arrays["y"].tolist(), "padding included"
        return {"x": jnp.array(arrays["x"]) * 2, "y": jnp.array(arrays["y"])}

    it = loader(
        loaders.fill_and_tell, training, validation=("epoch", 1, validation), placement_func=place, executor="thread"
    )
    with it:
        for batch in it:
            assert (batch.arrays["x"][:, 0] == batch.arrays["y"] * 2).all()
            assert list(batch.additional["item"]) == batch.arrays["y"].tolist()
            del batch
    assert calls == [training] * 3 + [validation]
    assert it.report().delivery == ("user", "user")


PLACEMENTS = {
    "asarray": lambda arrays, *_: {name: jnp.asarray(array) for name, array in arrays.items()},
    "array": lambda arrays, *_: {name: jnp.array(array) for name, array in arrays.items()},
    "device_put": lambda arrays, *_: jax.device_put(dict(arrays)),
    "second device": lambda arrays, *_: jax.device_put(dict(arrays), jax.devices()[1]),
}
LARGE = {"y": ((), np.int32, np.int32), "x": ((64,), np.float32, np.float32)}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("how", PLACEMENTS)
@pytest.mark.usefixtures("without_collector")
def test_memory_comes_back_from_jax_although_nobody_calls_it(how: str, depth: int) -> None:
    it = loader(
        training=group(range(8), loader_arrays=LARGE), placement_func=PLACEMENTS[how], executor="thread",
        depth=depth, end_at=("batch", 200), timeout_sec=30,
    )  # fmt: skip
    count = 0
    with it:
        for batch in it:
            count += 1
            del batch
    assert count == 200


@pytest.mark.parametrize("executor", ["thread", "inline"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("how", PLACEMENTS)
@pytest.mark.usefixtures("without_collector")
def test_no_batch_changes_while_it_is_looked_at(how: str, depth: int, executor: Any) -> None:
    training = group(range(4 * 50), loader_arrays=LARGE)
    it = loader(
        training=training, placement_func=PLACEMENTS[how], executor=executor, depth=depth, end_at=("epoch", 1),
        timeout_sec=30,
    )  # fmt: skip
    kept: list[Any] = []
    with it:
        # Not enumerate(it), which keeps its last tuple, and the batch in it, while it waits for the next.
        for batch in it:
            kept.append(batch)
            del batch
            if len(kept) == depth:
                for old in kept:
                    expected = np.arange(4 * old.batch_num, 4 * old.batch_num + 4)
                    assert np.asarray(old.arrays["y"]).tolist() == expected.tolist()
                    assert (np.asarray(old.arrays["x"]) == expected[:, None]).all()
                    del old
                kept.pop(0)
    assert it.report().training_batches == 50


def no_placement(*_: Any) -> Any:
    raise OSError("no such device")


def test_what_placement_func_raises_is_the_cause_of_a_placement_error() -> None:
    with loader(placement_func=no_placement) as it:
        with pytest.raises(PlacementError) as caught:
            next(it)
        assert str(caught.value) == "placement_func raised OSError: no such device"
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(PlacementError):
            next(it)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (lambda arrays: None, "placement_func returned NoneType, wanted a dict of jax.Arrays with the keys ['x', 'y']"),
        (lambda arrays: {"x": jnp.zeros(4)}, "placement_func returned the arrays ['x'], wanted ['x', 'y']"),
        (lambda arrays: dict(arrays), "placement_func returned ndarray for array 'x', wanted a jax.Array"),
    ],
)
@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_what_placement_func_must_not_return(returned: Any, text: str, executor: Any) -> None:
    it = loader(placement_func=lambda arrays, *_: returned(arrays), executor=executor)
    with it, pytest.raises(PlacementError) as caught:
        next(it)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (TypeError, {"load": None}, "loader_func: got None, wanted a callable"),
        (TypeError, {"load": "load"}, "loader_func: got 'load', wanted a callable"),
        (TypeError, {"startup_func": 3}, "startup_func: got 3, wanted a callable"),
        (TypeError, {"placement_func": 3}, "placement_func: got 3, wanted a callable"),
        (TypeError, {"training": 3}, "training: got int, wanted a DataGroup or several"),
        (TypeError, {"training": [3]}, "training: got int among the groups, wanted DataGroups"),
        (ValueError, {"training": []}, "training: got no DataGroup, wanted at least one"),
        (ValueError, {"executor": "fork"}, "executor: got 'fork', wanted one of 'process', 'thread', 'inline'"),
        (ValueError, {"delivery": None}, "delivery: got None, wanted one of 'auto', 'alias', 'copy'"),
        (ValueError, {"depth": 0}, "depth: got 0, wanted at least 1"),
        (TypeError, {"depth": 1.5}, "depth: got 1.5, wanted an integer"),
        (ValueError, {"loader_count": -1}, "loader_count: got -1, wanted at least 0"),
        (TypeError, {"loader_count": True}, "loader_count: got True, wanted an integer"),
        (ValueError, {"loader_nice": -1}, "loader_nice: got -1, wanted at least 0"),
        (ValueError, {"cacher_count": -1}, "cacher_count: got -1, wanted at least 0"),
        (TypeError, {"end_at": 5}, "end_at: got 5, wanted ('batch' or 'epoch', n), or None"),
        (TypeError, {"end_at": ("batch",)}, "end_at: got ('batch',), wanted ('batch' or 'epoch', n), or None"),
        (ValueError, {"end_at": ("step", 5)}, "end_at unit: got 'step', wanted one of 'batch', 'epoch'"),
        (ValueError, {"end_at": ("batch", -1)}, "end_at: got -1, wanted at least 0"),
        (TypeError, {"end_at": ("batch", 1.0)}, "end_at: got 1.0, wanted an integer"),
        (
            TypeError,
            {"start_at": 3},
            "start_at: got 3, wanted (epoch, batch), both at least 0, or what state() returned",
        ),
        (
            ValueError,
            {"start_at": (0, -1)},
            "start_at: got (0, -1), wanted (epoch, batch), both at least 0, or what state() returned",
        ),
        (
            TypeError,
            {"start_at": (0, "1")},
            "start_at: got (0, '1'), wanted (epoch, batch), both at least 0, or what state() returned",
        ),
        (TypeError, {"validation": 3}, "validation: got 3, wanted ('batch' or 'epoch', interval, groups)"),
        (ValueError, {"validation": ("step", 1, 0)}, "validation mode: got 'step', wanted one of 'batch', 'epoch'"),
        (ValueError, {"validation": ("batch", 0, 0)}, "validation interval: got 0, wanted at least 1"),
        (TypeError, {"validation": ("batch", 1, 0)}, "validation: got int, wanted a DataGroup or several"),
        (ValueError, {"validation": ("batch", 1, [])}, "validation: got no DataGroup, wanted at least one"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(kind: type[Exception], options: dict[str, Any], text: str) -> None:
    assert refused(kind, **options) == text


def test_weights_that_are_refused() -> None:
    assert "group 1 has none" in refused(ValueError, training=[group(weight=1), group()])
    for weight in (0, -1, float("nan"), float("inf")):
        message = refused(ValueError, training=[group(weight=weight), group(weight=1)])
        assert f"a weight must be a finite number above 0, got {weight!r} for group 0" in message
    weighted = ("epoch", 1, [group(), group(weight=1)])
    assert "validation group 1 has weight 1" in refused(ValueError, validation=weighted)


def test_a_timeout_of_zero_or_less_waits_for_ever() -> None:
    for timeout in (0, -1):
        assert len(rows(loader(executor="thread", timeout_sec=timeout))) == 2


def test_all_arguments_after_the_groups_have_names() -> None:
    with pytest.raises(TypeError):
        Dataloader(loaders.fill, group(), None)  # type: ignore[misc]


def test_what_jax_refuses_is_a_placement_error_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("no room on the device")

    monkeypatch.setattr("hydrax_gpu._place.placer.to_jax", refuse)
    with pytest.raises(PlacementError, match="no room on the device") as caught, loader(delivery="alias") as it:
        next(it)
    assert isinstance(caught.value.__cause__, ValueError)
