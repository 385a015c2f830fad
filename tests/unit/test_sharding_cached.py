"""Caches of groups whose batches are spread over the eight devices of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu._place import backends
from hydrax_gpu.testing import FakeDevice


def over(*spec: Any, shape: tuple[int, ...] = (4, 2)) -> NamedSharding:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return NamedSharding(Mesh(devices, ("data", "model")[: len(shape)]), PartitionSpec(*spec))


LOADED = {"x": ((4, 8), np.float32, np.float32), "y": ((), np.int32, np.int32)}
LATENT = {"z": ((8,), np.float16, np.float32), "w": ((2, 4), np.int32, np.int32)}
WAYS: dict[str, Any] = {
    "rows": over("data"),
    "rows × model": {
        "x": over("data", None, "model"), "y": over("data"), "z": over("data", "model"), "w": over(("data", "model")),
    },
    "other rows cached": {"x": over("data"), "y": over("data"), "z": over(), "w": over("model")},
}  # fmt: skip


def load(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    arrays["x"][...] = item + np.arange(32).reshape(4, 8)
    arrays["y"][...] = item
    return {"item": item}


def forbidden(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    raise AssertionError(f"item {item} is in the cache")


def group(location: Path, **options: Any) -> DataGroup[Any]:
    options = {"loader_arrays": LOADED, "cache_arrays": LATENT, "shuffle_first": True, "remainder": "pad"} | options
    return DataGroup(8, range(20), cache_location=location, **options)


def of(sharding: Any, names: Any) -> Any:
    return {name: sharding[name] for name in names} if isinstance(sharding, dict) else sharding


def encode(batch: Any, sharding: Any) -> None:
    x = np.asarray(batch.arrays["x"])
    content = {"z": x[:, 0], "w": x[:, 1:3, :4].astype(np.int32)}
    wanted = {name: sharding[name] if isinstance(sharding, dict) else sharding for name in LATENT}
    batch.cache({name: jax.device_put(content[name], wanted[name]) for name in LATENT})


def run(function: Any, data: DataGroup[Any], sharding: Any, **options: Any) -> tuple[list[Any], Any]:
    """Rows of each batch, which are checked, and the report."""
    names = {**(data.loader_layouts or {}), **(data.cache_layouts or {})}
    seen: list[Any] = []
    options = {"executor": "inline", "end_at": ("epoch", 1)} | options
    with Dataloader(function, data, sharding=of(sharding, names), **options) as loader:
        for batch in loader:
            was = batch.uncached
            if was:
                encode(batch, sharding)
            items = np.array(batch.indices)
            for name, array in batch.arrays.items():
                if name in LATENT:
                    wanted = sharding[name] if isinstance(sharding, dict) else sharding
                    assert array.sharding.is_equivalent_to(wanted, array.ndim)
                content = items[:, None, None] + np.arange(32).reshape(4, 8)
                whole = {"x": content, "y": items, "z": content[:, 0], "w": content[:, 1:3, :4]}[name]
                np.testing.assert_array_equal(np.asarray(array), whole)
            assert batch.additional["item"] == list(batch.indices)
            seen.append((list(batch.indices), was))
            del batch
    return seen, loader.report().caches[0]


@pytest.mark.parametrize("way, delivery", [*zip(WAYS, ["alias", "copy", "alias"], strict=True)])
def test_latents_are_written_once_and_read_with_their_sharding(way: str, delivery: Any, tmp_path: Path) -> None:
    sharding = WAYS[way]
    first, info = run(load, group(tmp_path), sharding, delivery=delivery)
    assert [was for _, was in first] == [True] * 3 and (info.written, info.present, info.troubles) == (20, 0, ())
    again, info = run(forbidden, group(tmp_path), sharding, delivery=delivery)
    assert again == [(items, False) for items, _ in first] and (info.hits, info.misses) == (20, 0)
    only, info = run(forbidden, group(tmp_path, loader_arrays=None), sharding, delivery=delivery, loader_count=0)
    assert only == again and info.hits == 20


def test_a_cache_of_one_device_serves_several_and_the_other_way_round(tmp_path: Path) -> None:
    first, _ = run(load, group(tmp_path / "a"), over("data", shape=(1,)))
    for sharding in WAYS.values():
        assert run(forbidden, group(tmp_path / "a"), sharding)[0] == [(items, False) for items, _ in first]
    run(load, group(tmp_path / "b"), WAYS["rows × model"])
    assert run(forbidden, group(tmp_path / "b"), over("data", shape=(1,)))[1].hits == 20


def test_what_the_loader_function_fills_is_cached_and_cut(tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_arrays": None}
    first, info = run(load, group(tmp_path, **options), WAYS["rows × model"], executor="thread", loader_count=2)
    assert info.written == 20 and not any(was for _, was in first)
    again, info = run(forbidden, group(tmp_path, **options), WAYS["rows × model"])
    assert again == first and info.hits == 20


def test_devices_with_memory_of_their_own_are_given_cached_batches(tmp_path: Path) -> None:
    first, _ = run(load, group(tmp_path), over("data"))
    devices = {each: FakeDevice(index=number) for number, each in enumerate(jax.devices())}
    with backends.replaced(devices.__getitem__):
        again, info = run(forbidden, group(tmp_path), over("data"), delivery="alias")
    assert again == [(items, False) for items, _ in first] and info.hits == 20


def test_an_array_with_another_sharding_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    sharding = over("data")
    for location in (tmp_path, None):
        with Dataloader(load, group(location), sharding=sharding, executor="inline") as loader:
            batch = next(loader)
            content = {"z": batch.arrays["x"][:, 0], "w": batch.arrays["x"][:, 1:3, :4].astype(np.int32)}
            moved = {name: jax.device_put(array, over("model")) for name, array in content.items()}
            with pytest.raises(ValueError, match="out_shardings") as caught:
                batch.cache(moved)
            assert str(over("data")) in str(caught.value) and str(over("model")) in str(caught.value)
            assert batch.uncached, "nothing has changed"
            batch.cache({name: jax.device_put(array, sharding) for name, array in content.items()})
            del batch, content, moved


def test_every_array_needs_a_sharding_those_that_are_cached_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array 'z' has none"):
        Dataloader(load, group(tmp_path), sharding={"x": over("data"), "y": over("data")}, executor="inline")
    with pytest.raises(ValueError, match="cannot be divided"):
        Dataloader(
            load, group(tmp_path), executor="inline",
            sharding=dict.fromkeys(("x", "y", "z"), over("data")) | {"w": over(None, None, ("data", "model"))},
        )  # fmt: skip


def test_rounded_latents_are_made_floats_of_before_they_are_cut(tmp_path: Path) -> None:
    data = group(tmp_path, cache_arrays={"z": ((8,), np.float32, np.float32)}, cache_compression="int8")
    sharding = over("data", "model")
    of_rows = {"x": over("data"), "y": over("data"), "z": sharding}
    for uncached in True, False:
        with Dataloader(load, data, sharding=of_rows, executor="inline", end_at=("epoch", 1)) as loader:
            for batch in loader:
                assert batch.uncached is uncached
                if uncached:
                    batch.cache({"z": jax.device_put(np.asarray(batch.arrays["x"])[:, 0], sharding)})
                wanted = np.array(batch.indices)[:, None] + np.arange(8)
                assert batch.arrays["z"].sharding.is_equivalent_to(sharding, 2)
                np.testing.assert_allclose(np.asarray(batch.arrays["z"]), wanted, atol=0 if uncached else 27 / 254)
                del batch
