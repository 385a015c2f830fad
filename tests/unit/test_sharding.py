"""Global arrays over the eight devices of this process: values, shardings, memory, and what is refused."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from hydrax_gpu import ArraySpec, Dataloader, Normalize
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.loader import Delivery, ExecutorName
from tests import loaders
from tests.small import group, loader, refused

P = PartitionSpec
ALL = {
    "x": ((4, 16), np.uint8, np.uint8),
    "y": ((), np.int32, np.int32),
    "half": ((32,), jnp.bfloat16, jnp.bfloat16),
    "flag": ((64,), np.bool_, np.bool_),
    "f": ((8, 2), np.float32, np.float32),
    "z": ((16, 4), np.uint8, np.float32),  # is converted
    "wide": ((8,), np.int64, np.int32),  # is narrowed, and converted to what it was narrowed to
    "c": ((), np.uint8, np.float16),
}
ALIGNED = {"x": ((64,), np.uint8, np.uint8), "f": ((16,), np.float32, np.float32)}


def mesh(*shape: int, reverse: bool = False) -> Mesh:
    devices = jax.devices()[: int(np.prod(shape))]
    return Mesh(np.array(devices[::-1] if reverse else devices).reshape(shape), ("data", "model")[: len(shape)])


def over(*spec: Any, shape: tuple[int, ...] = (4, 2), reverse: bool = False) -> NamedSharding:
    return NamedSharding(mesh(*shape, reverse=reverse), P(*spec))


def sharding_of(sharding: Any, name: str) -> Any:
    return sharding[name] if isinstance(sharding, dict) else sharding


SHARDINGS: dict[str, Any] = {
    "batch": over("data"),
    "all devices": over(("data", "model")),
    "other devices first": over(("model", "data")),
    "reversed": over("data", shape=(8,), reverse=True),
    "replicated": over(),
    "one of a mesh": over("data", shape=(1,)),
    "single device": SingleDeviceSharding(jax.devices()[3]),
    "one per array": {
        "x": over("data", "model"),
        "y": over(),
        "half": over(None, "model"),
        "flag": over("data"),
        "f": over("model", "data", reverse=True),
        "z": over("data", None, "model"),
        "wide": SingleDeviceSharding(jax.devices()[5]),
        "c": over("model"),
    },
}


def fill(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Values of which each differs from its neighbours, so that a wrong part is seen."""
    for name, array in arrays.items():
        array[...] = expected(name, item, array.shape, array.dtype)
    return {"item": item}


def expected(name: str, item: int, shape: tuple[int, ...], dtype: Any) -> Any:
    numbers = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape) * 7 + item * 3 + len(name)
    return (numbers % 2 if dtype == np.bool_ else numbers % 251).astype(dtype)


def check(batch: Any, arrays: Any, sharding: Any) -> None:
    assert list(batch.arrays) == list(arrays)
    for name, (shape, held, dtype) in arrays.items():
        array, wanted = batch.arrays[name], sharding_of(sharding, name)
        assert array.sharding == wanted and array.committed
        assert array.dtype == dtype and array.shape == (len(batch.indices), *shape)
        whole = np.stack([expected(name, item, shape, held) for item in batch.data]).astype(dtype)
        shards = array.addressable_shards
        assert {shard.device for shard in shards} == wanted.device_set
        for shard in shards:
            assert shard.data.devices() == {shard.device}
            np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index], f"{name} on {shard.device}")


@pytest.mark.parametrize("delivery", ["auto", "alias", "copy"])
@pytest.mark.parametrize("name", SHARDINGS)
def test_every_device_has_its_part(name: str, delivery: Delivery) -> None:
    sharding = SHARDINGS[name]
    it = loader(
        fill, group(range(45), 8, loader_arrays=ALL, remainder="pad", shuffle_first=True, seed=3), delivery=delivery,
        sharding=sharding, validation=("epoch", 1, group(range(50, 66), 16, loader_arrays=ALL)),
    )  # fmt: skip
    valid: list[int] = []
    with it:
        for batch in it:
            check(batch, ALL, sharding)
            assert batch.global_indices == batch.indices and list(batch.global_rows) == list(range(len(batch.indices)))
            assert list(batch.additional["item"]) == list(batch.data)
            valid.append(int(batch.valid.sum()))
            del batch
    assert valid == [8, 8, 8, 8, 8, 5, 16]
    assert it.report().delivery == (("alias",) * 2 if delivery == "alias" else ("copy",) * 2)


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_workers_fill_what_the_devices_get(executor: ExecutorName) -> None:
    sharding = {"x": over("data"), "y": over("data")}
    it = loader(loaders.fill, group(range(40), 8), sharding=sharding, executor=executor, loader_count=2)
    with it:
        for batch in it:
            assert batch.arrays["y"].tolist() == list(batch.indices)
            assert batch.arrays["x"].sharding == sharding["x"]
            del batch


def test_what_is_decoded_is_sharded() -> None:
    arrays = {"x": ArraySpec((4, 16), np.uint8, jnp.float32, Normalize(mean=0.5, std=0.25))}
    whole = [np.asarray(batch.arrays["x"]) for batch in run(loader(fill, group(range(16), 8, loader_arrays=arrays)))]
    parts = run(loader(fill, group(range(16), 8, loader_arrays=arrays), sharding=over("data", None, "model")))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other.arrays["x"]))


def run(it: Dataloader[Any]) -> Iterator[Any]:
    with it:
        yield from it


def test_a_short_last_batch_is_sharded_if_it_can_be() -> None:
    sharding = over("data")
    with loader(fill, group(range(20), 8, loader_arrays=ALL, remainder="short"), sharding=sharding) as it:
        rows = []
        for batch in it:
            check(batch, ALL, sharding)
            rows.append(len(batch.indices))
            del batch
    assert rows == [8, 8, 4]


# Memory.


def pointers(array: Any) -> list[int]:
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def spans(it: Dataloader[Any]) -> list[range]:
    arena: Any = it._arena  # pyright: ignore[reportPrivateUsage]
    return [arena.span(slot) for slot in range(arena.shape.depth)]


def inside(it: Dataloader[Any], address: int) -> bool:
    return any(address in span for span in spans(it))


@pytest.mark.parametrize("sharding", [over("data"), over(("model", "data")), over(), over("data", reverse=True)])
def test_aliased_parts_are_the_slot_itself(sharding: Any) -> None:
    with loader(fill, group(range(64), 16, loader_arrays=ALIGNED), sharding=sharding, delivery="alias") as it:
        for batch in it:
            check(batch, ALIGNED, sharding)
            assert all(inside(it, address) for array in batch.arrays.values() for address in pointers(array))
            del batch
    assert it.report().delivery == ("alias",) and it.report().notes == ()


def test_devices_that_have_the_same_part_share_it() -> None:
    with loader(fill, group(range(64), 16, loader_arrays=ALIGNED), sharding=over("data"), delivery="alias") as it:
        batch = next(it)
        by_rows: dict[Any, set[int]] = {}
        for shard in batch.arrays["x"].addressable_shards:
            by_rows.setdefault(shard.index[0].start, set()).add(shard.data.unsafe_buffer_pointer())
        assert len(by_rows) == 4 and all(len(addresses) == 1 for addresses in by_rows.values())
        del batch, shard


@pytest.mark.parametrize("delivery", ["copy", "auto"])
def test_copied_parts_may_be_kept(delivery: Delivery) -> None:
    with loader(fill, group(range(64), 16, loader_arrays=ALIGNED), sharding=over(), delivery=delivery, depth=1) as it:
        kept = list(it)
        for batch in kept:
            check(batch, ALIGNED, over())
            assert not any(inside(it, address) for array in batch.arrays.values() for address in pointers(array))


@pytest.mark.parametrize(
    ("arrays", "sharding", "words"),
    [
        ({"x": ((64,), np.uint8, np.uint8)}, over("data", "model"), "cuts other axes"),
        ({"x": ((3,), np.uint8, np.uint8)}, over("data"), "4 rows of a device have 12 bytes"),
        ({"x": ((64,), np.int64, np.int32)}, over("data"), "jax_enable_x64 is off"),
    ],
)
def test_an_array_that_cannot_be_shared_is_copied_which_is_noted(
    arrays: Any, sharding: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with loader(fill, group(range(32), 16, loader_arrays=arrays), sharding=sharding, delivery="alias") as it:
        for batch in it:
            check(batch, arrays, sharding)
            del batch
    (note,) = it.report().notes
    assert words in note and "array 'x'" in note
    assert [record.message for record in caplog.records] == [note], "once"
    assert it.report().delivery == ("copy",)


def test_auto_shares_large_parts_only() -> None:
    arrays = {"x": ((1 << 17,), np.uint8, np.uint8), "y": ((), np.int32, np.int32)}
    with loader(fill, group(range(16), 16, loader_arrays=arrays), sharding=over("data"), delivery="auto") as it:
        batch = next(it)
        check(batch, arrays, over("data"))
        assert all(inside(it, address) for address in pointers(batch.arrays["x"]))
        assert not any(inside(it, address) for address in pointers(batch.arrays["y"]))
        assert it.report().delivery == ("alias",)
        del batch


def test_a_donated_part_leaves_the_others_as_they_are() -> None:
    # Replicas share their memory, which XLA would write to if it took a donation of one of them.
    for delivery in ("alias", "copy"):
        with loader(fill, group(range(16), 16, loader_arrays=ALIGNED), sharding=over(), delivery=delivery) as it:
            batch = next(it)
            shards = [shard.data for shard in batch.arrays["f"].addressable_shards]
            jax.jit(lambda x: x * 2 + 1, donate_argnums=0)(shards[0]).block_until_ready()
            whole = np.stack([expected("f", item, (16,), np.float32) for item in batch.indices])
            for shard in shards[1:]:
                np.testing.assert_array_equal(np.asarray(shard), whole)
            del batch, shards, shard


# Lifetime.


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("held", ["array", "one shard", "shard of a replica", "view"])
def test_a_slot_is_not_filled_again_while_a_part_of_it_is_held(held: str) -> None:
    sharding = over() if held == "shard of a replica" else over("data")
    with loader(
        fill, group(range(16), 16, loader_arrays=ALIGNED), sharding=sharding, delivery="alias", depth=2,
        end_at=("epoch", 40), executor="thread",
    ) as it:  # fmt: skip
        batch = next(it)
        kept: Any = batch.arrays["f"]
        if "shard" in held:
            kept = kept.addressable_shards[-1].data
        elif held == "view":
            kept = np.asarray(kept.addressable_shards[2].data)
        before = np.array(kept)
        address = batch.arrays["f"].addressable_shards[0].data.unsafe_buffer_pointer()
        del batch
        for batch in it:
            assert batch.arrays["f"].addressable_shards[0].data.unsafe_buffer_pointer() != address, "it is held"
            np.testing.assert_array_equal(np.asarray(kept), before)
            del batch
        del kept


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("delivery", ["alias", "copy", "auto"])
def test_slots_come_back_although_nobody_calls_jax(delivery: Delivery) -> None:
    with loader(
        fill, group(range(32), 16, loader_arrays=ALL), sharding=SHARDINGS["one per array"], delivery=delivery,
        depth=1, end_at=("batch", 60), executor="thread", timeout_sec=20,
    ) as it:  # fmt: skip
        count = 0
        for batch in it:
            count += 1
            del batch
    assert count == 60


@pytest.mark.parametrize("kept", ["array", "shard", "computation"])
def test_the_interpreter_ends_while_parts_are_held(kept: str, tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    done = subprocess.run(
        [sys.executable, script, kept], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert "not waiting" not in done.stderr, "what is held by Python objects is not waited for"


ENDS = """
import logging, sys
logging.basicConfig()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from hydrax_gpu import DataGroup, Dataloader
from tests.unit.test_sharding import fill
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
group = DataGroup(64, range(640), loader_arrays={"f": ((1 << 12,), np.float32, np.float32)})
work = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda i, y: jnp.sin(y + x), x))
kept = []
with Dataloader(fill, group, executor="inline", sharding=sharding, delivery="alias", end_at=("batch", 3)) as loader:
    for batch in loader:
        array = batch.arrays["f"]
        if sys.argv[1] == "array":
            kept.append(array)
        elif sys.argv[1] == "shard":
            kept.append(array.addressable_shards[1].data)
        else:
            kept.append(work(array))
        del array, batch
print("ok")
"""


# What is refused.


@pytest.mark.parametrize(
    ("kind", "sharding", "words"),
    [
        (TypeError, P("data"), "got P.*, wanted a jax.sharding.Sharding"),
        (TypeError, {"x": P("data"), "y": over("data")}, "sharding of array 'x': got P"),
        (ValueError, {"x": over("data"), "q": over("data")}, "no array 'q'; the groups have x, y"),
        (ValueError, {"x": over("data")}, "array 'y' has none"),
        (ValueError, {"x": over("data"), "y": over("data", "model")}, "array 'y': .*at least 2 axes.* shape \\(4,\\)"),
        (ValueError, over(("data", "model")), "array 'x'.*cuts axis 0 .* into 8 parts.*batch_size, which is that of"),
        (
            ValueError,
            {"x": over("data", "model"), "y": over()},
            "array 'x'.*cuts axis 1 of shape \\(4, 3\\) into 2 parts, but 3 cannot be divided by 2",
        ),
        (
            ValueError,
            NamedSharding(mesh(4, 2), P("data"), memory_kind="pinned_host"),
            "got memory kind 'pinned_host', wanted 'unpinned_host'|'device'",
        ),
        (ValueError, NamedSharding(mesh(4, 2).abstract_mesh, P("data")), "names no devices"),
    ],
)
def test_shardings_that_do_not_fit_are_refused(kind: type[Exception], sharding: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        loader(sharding=sharding)


def test_a_short_batch_that_cannot_be_divided_is_refused() -> None:
    training = group(range(10), 4, remainder="short")
    message = refused(ValueError, training=training, sharding=over("data"))
    assert "remainder='short'" in message and "'pad'" in message and "'drop'" in message
    for remainder in ("pad", "drop"):
        loader(training=group(range(10), 4, remainder=remainder), sharding=over("data"))
    message = refused(ValueError, validation=("epoch", 1, group(range(6), 4, remainder="short")), sharding=over("data"))
    assert "remainder='short'" in message


def test_placement_func_and_sharding_are_refused_together() -> None:
    message = refused(ValueError, sharding=over("data"), placement_func=lambda arrays, *_: arrays)
    assert "both" in message and "wanted one of them" in message


# In one process nothing else changes.


def test_the_order_and_the_state_are_those_of_a_loader_without_a_sharding() -> None:
    def plans(**options: Any) -> tuple[list[Any], list[Any]]:
        it = loader(loaders.FailsFor(3), group(range(30), 8, seed=5, shuffle_first=True, remainder="pad"), **options)
        found, states = [], []
        with it:
            for batch in it:
                plan: BatchPlan = batch._plan  # pyright: ignore[reportPrivateUsage]
                found.append(plan)
                states.append(it.state())
                del batch
        assert it.report().dropped_batches == 1, "of a sharding of one process alone a batch can be dropped"
        return found, states

    assert plans() == plans(sharding=over("data"))
