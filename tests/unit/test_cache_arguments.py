"""What a `DataGroup` and `Batch.cache` take about caches, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import ArraySpec, Batch, DataGroup, Dataloader, UnpackBits
from tests import loaders
from tests.cached_runs import CACHED, LOADED, direct, encoded

GIVEN: dict[str, Any] = {
    "loader_arrays": LOADED, "cache_arrays": CACHED, "cache_location": "somewhere", "cache_readonly": True
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, given, says",
    [
        (ValueError, {}, "neither loader_arrays nor cache_arrays"),
        (ValueError, {"cache_location": "c"}, "neither loader_arrays nor cache_arrays"),
        (ValueError, {"cache_arrays": CACHED}, "without a cache_location"),
        (ValueError, {"loader_arrays": LOADED, "cache_readonly": True}, "cache_readonly without a cache_location"),
        (ValueError, {"loader_arrays": LOADED, "cache_version": "1"}, "cache_version without a cache_location"),
        (ValueError, {"loader_arrays": LOADED, "cache_location": ""}, "the name of a directory"),
        (TypeError, {"loader_arrays": LOADED, "cache_location": 5}, "cache_location: got int"),
        (TypeError, {"loader_arrays": LOADED, "cache_location": "c", "cache_version": 3}, "cache_version: got 3"),
        (TypeError, {**GIVEN, "cache_arrays": [1]}, "cache_arrays: got list"),
        (ValueError, {**GIVEN, "cache_arrays": {}}, "cache_arrays: got no arrays"),
        (ValueError, {**GIVEN, "cache_arrays": {"x": ((0,), "f4", "f4")}}, "cache_arrays: array 'x': got shape"),
        (
            ValueError,
            {**GIVEN, "cache_arrays": {"x": ArraySpec((2,), "uint8", "float32", UnpackBits(1))}},
            "cache_arrays: got a decode for array 'x'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(kind: type[Exception], given: dict[str, Any], says: str) -> None:
    with pytest.raises(kind, match=says):
        DataGroup(2, range(4), **given)


def test_what_a_group_says_of_its_cache() -> None:
    plain = direct(None)
    assert (plain.cache_layouts, plain.cache_size, plain.cache_location) == (None, None, None)
    assert not plain.cache_readonly and plain.cache_version == ""
    both = DataGroup(4, range(8), **GIVEN, cache_version="7")
    assert both.cache_layouts is not None and [*both.cache_layouts] == [*CACHED]
    shape, numpy_dtype, jax_dtype, offset, count = both.cache_layouts["z"]
    assert (shape, numpy_dtype.name, jax_dtype.name, offset, count) == ((4, 5), "bfloat16", "bfloat16", 0, 20)
    assert both.cache_size == 512 and both.loader_size == 512
    assert both.cache_location == str(Path("somewhere").absolute())
    assert both.cache_readonly and both.cache_version == "7"
    same = DataGroup(4, range(8), loader_arrays=LOADED, cache_location="somewhere")
    assert same.cache_layouts == same.loader_layouts and same.cache_size == same.loader_size
    assert not same.cache_readonly
    only = DataGroup(4, range(8), cache_arrays=CACHED, cache_location="somewhere")
    assert only.cache_readonly and only.loader_size is None and not only.loader_layouts
    assert repr(only) == "DataGroup(8 items, batch_size=4, cached: z, w)"


@pytest.mark.parametrize("location, order", [(None, "itemwise"), ("c", "batchwise")])
def test_default_order_is_batchwise_with_a_cache(location: Any, order: Any) -> None:
    from hydrax_gpu.group import plan_of

    group = DataGroup(2, range(8), loader_arrays=LOADED, cache_location=location)
    assert group.shuffle_later == "default" and plan_of(group).shuffle_later == order
    assert plan_of(DataGroup(2, range(8), loader_arrays=LOADED, cache_arrays=CACHED)).shuffle_later == "itemwise"


def batch_of(group: DataGroup[Any], **options: Any) -> Batch[Any]:
    with Dataloader(loaders.draw, group, executor="inline", end_at=("batch", 1), **options) as loader:
        return next(loader)


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    import jax.numpy as jnp

    return {"z": jnp.ones((4, 5), jnp.bfloat16), "w": jnp.arange(4.0)}


def test_cache_replaces_what_a_batch_holds(given: dict[str, Any]) -> None:
    batch = batch_of(encoded(None))
    assert batch.uncached and batch.layouts == batch.group.loader_layouts
    batch.cache(given, {"mark": [1, 2, 3, 4]}, persist=False)
    assert not batch.uncached and batch.layouts == batch.group.cache_layouts
    assert [*batch.arrays] == ["z", "w"] and batch.arrays["w"] is given["w"]
    assert batch.get_array("z") is given["z"]
    assert dict(batch.additional) == {"mark": [1, 2, 3, 4]}
    with pytest.raises(RuntimeError, match="cached already"):
        batch.cache(given)


def test_cache_keeps_the_additional_data_by_default(given: dict[str, Any]) -> None:
    batch = batch_of(encoded(None))
    before = dict(batch.additional)
    batch.cache(given)
    assert dict(batch.additional) == before and before["item"] == [0, 1, 2, 3]


def test_only_declared_caches_can_be_filled_by_hand(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="declares no cache"):
        batch_of(direct(None)).cache(given)
    with pytest.raises(RuntimeError, match="caches what the loader function fills"):
        batch_of(direct(tmp_path / "c")).cache(given)


def wrong(given: dict[str, Any]) -> list[tuple[type[Exception], str, Any, Any]]:
    import jax.numpy as jnp

    z, w = given["z"], given["w"]
    return [
        (TypeError, "arrays: got list", [z, w], None),
        (ValueError, "wanted the group's cache_arrays", {"z": z}, None),
        (ValueError, "wanted the group's cache_arrays", {**given, "v": w}, None),
        (TypeError, "'w': got ndarray, wanted a jax.Array", {**given, "w": np.arange(4.0)}, None),
        (ValueError, r"'w': got shape \(3,\), wanted \(4,\)", {**given, "w": w[:3]}, None),
        (ValueError, "'z': got dtype float32, wanted bfloat16", {**given, "z": z.astype(jnp.float32)}, None),
        (TypeError, "additional: got list", given, [1]),
        (TypeError, "additional: got the key 1", given, {1: [1] * 4}),
        (TypeError, r"additional\['a'\]: got str", given, {"a": "four"}),
        (ValueError, r"additional\['a'\]: got 3 values, wanted 4", given, {"a": [1, 2, 3]}),
    ]


def test_what_does_not_fit_changes_nothing(given: dict[str, Any]) -> None:
    import jax

    batch = batch_of(encoded(None))
    before = dict(batch.arrays)
    for kind, says, arrays, additional in wrong(given):
        with pytest.raises(kind, match=says):
            batch.cache(arrays, additional)
    with pytest.raises(TypeError, match="tracer"):
        jax.jit(lambda w: batch.cache({**given, "w": w}))(given["w"])
    gone = given["w"] + 1
    gone.delete()
    with pytest.raises(ValueError, match="deleted, or donated"):
        batch.cache({**given, "w": gone})
    assert batch.uncached and dict(batch.arrays) == before
    batch.cache(given)


def test_a_short_batch_is_cached_with_the_rows_it_has(tmp_path: Path) -> None:
    import jax.numpy as jnp

    group = encoded(tmp_path / "c", 4, range(6))
    for expected in ([True, True], [False, False]):
        with Dataloader(loaders.draw, group, executor="inline", end_at=("epoch", 1)) as loader:
            first, last = loader
            assert [first.uncached, last.uncached] == expected
            if last.uncached:
                for batch, rows in (first, 4), (last, 2):
                    batch.cache({"z": jnp.ones((rows, 5), jnp.bfloat16), "w": jnp.zeros(rows)})
            assert last.arrays["z"].shape == (2, 5)


def test_a_cached_batch_gives_its_slot_back(given: dict[str, Any]) -> None:
    """The loader's own arrays are given up, so that keeping many cached batches does not stop a loader."""
    kept: list[Any] = []
    group = encoded(None, 4, range(40))
    with Dataloader(
        loaders.draw, group, executor="thread", delivery="alias", depth=2, end_at=("epoch", 1), timeout_sec=20
    ) as loader:
        for batch in loader:
            batch.cache(given)
            kept.append(batch)
            del batch
    assert len(kept) == 10 and all(batch.arrays["w"] is given["w"] for batch in kept)
