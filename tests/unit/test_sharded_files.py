"""Pictures and graphs that several devices decode, each the rows of its part; fakes, each on a CPU device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place.sharded_devices import DeviceRings, ShardLayout
from hydrax_gpu._place.shards import Shards
from hydrax_gpu._place.targets import Part
from hydrax_gpu._spec import Layout
from hydrax_gpu.loaders import DaliLoader, ImageLoader
from hydrax_gpu.testing import FakeDevice, FakeEvent, FakeStream
from tests import dali_graphs as graphs
from tests.gpu.pictures import LABELS, damaged, photographs
from tests.unit.test_sharding import over
from tests.unit.test_sharding_devices import fakes

P = PartitionSpec

SHARDINGS: dict[str, Any] = {
    "by rows": over("data", shape=(4,)),
    "in part replicated": over("data", shape=(2, 2)),
    "replicated": over(None, shape=(4,)),
}


def picture_loader() -> ImageLoader:
    return ImageLoader((64, 80), labels=LABELS)


def graph_loader() -> DaliLoader:
    return DaliLoader(graphs.augment_there, fields=("image", "label"))


LOADERS: dict[str, Any] = {
    "pictures": (picture_loader, lambda: picture_loader().arrays()),
    "graph": (graph_loader, lambda: {"image": ((24, 32, 3), np.uint8, np.uint8), "label": ((), np.int32, np.int32)}),
}


class Batches:
    """What a run has handed out: for each batch the rows of each array, and the same of each device's part."""

    def __init__(self) -> None:
        self.rows: list[dict[str, np.ndarray[Any, Any]]] = []
        self.report: Any = None


def run(kind: str, sharding: Any, files: Any = None, **options: Any) -> Batches:
    make, arrays = LOADERS[kind]
    found = Batches()
    data = photographs() if files is None else files
    group = DataGroup(8, data, loader_arrays=arrays(), seed=5, shuffle_first=True, remainder="pad")
    options = {"executor": "thread", "loader_count": 2, "delivery": "alias", "timeout_sec": 60} | options
    with Dataloader(make(), group, sharding=sharding, end_at=("epoch", 1), **options) as loader:
        for batch in loader:
            whole: dict[str, np.ndarray[Any, Any]] = {}
            for name, array in batch.arrays.items():
                whole[name] = np.array(array)
                for shard in array.addressable_shards:  # also those of which the whole has taken another one's
                    np.testing.assert_array_equal(np.asarray(shard.data), whole[name][shard.index])
            found.rows.append(whole)
            del batch, array, shard
        found.report = loader.report()
    return found


def same(a: Batches, b: Batches) -> bool:
    return len(a.rows) == len(b.rows) > 0 and all(
        np.array_equal(x[name], y[name]) for x, y in zip(a.rows, b.rows, strict=True) for name in x
    )


@pytest.mark.parametrize(
    ("kind", "name"), [*(("pictures", name) for name in SHARDINGS), ("graph", "by rows"), ("graph", "replicated")]
)
def test_rows_are_those_of_the_cpu_to_the_bit(kind: str, name: str) -> None:
    wanted = run(kind, SHARDINGS[name], photographs()[:21])
    with fakes() as devices:
        got = run(kind, SHARDINGS[name], photographs()[:21])
    assert same(got, wanted)
    assert got.report.pictures == "4 × a fake device" and not wanted.report.pictures
    assert not got.report.fallbacks and not got.report.notes
    used = [device for each, device in devices.items() if each in SHARDINGS[name].device_set]
    decoded = [len(device.pictures) + device.graph_rows for device in used]
    # of the third batch, which has 5 items, the last 3 rows repeat the first ones
    each = {"by rows": 3 * 2, "in part replicated": 3 * 4, "replicated": 21}[name]
    assert decoded == [each] * 4, "each device decodes what it has, and no more"
    files = {thread.name for thread in threading.enumerate()} & {"hydrax_gpu-files"}
    assert not files, "their threads have ended"


def refusing(devices: Mapping[Any, FakeDevice], which: int, every: int) -> None:
    """Lets one of the devices refuse every so many of the photographs."""
    left = {data for data, number in photographs() if number % every}
    chosen = devices[jax.local_devices()[which]]
    chosen.refuses = lambda data: None if data in left else "it does not like it"


@pytest.mark.parametrize(
    ("kind", "name"), [("pictures", "by rows"), ("pictures", "replicated"), ("graph", "replicated")]
)
def test_what_one_device_refuses_is_a_workers_for_all(kind: str, name: str) -> None:
    wanted = run(kind, SHARDINGS[name])
    with fakes() as devices:
        refusing(devices, 1, 3)
        got = run(kind, SHARDINGS[name])
    assert same(got, wanted)
    (count,) = (count for line, count in got.report.fallbacks.items() if "it does not like it" in line)
    assert count == 8 if name == "replicated" else 0 < count < 8


def test_devices_with_the_same_row_have_the_same_pixels_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose decoder is no worker's: where another one refuses a picture, it takes the worker's, too."""
    from hydrax_gpu import _fakedecoding

    with fakes() as devices:
        refusing(devices, 1, 3)
        decode = _fakedecoding.FakeImageDecoder._one

        def lighter(self: Any, stream: Any, picture: Any) -> Any:
            reason = decode(self, stream, picture)
            if reason is None:
                shape = picture.height, picture.width, 3

                def run() -> None:
                    _fakedecoding.window(picture.destination, shape, np.dtype(np.uint8))[...] = 255

                self._device.enqueue(stream, "lighten", run)
            return reason

        monkeypatch.setattr(_fakedecoding.FakeImageDecoder, "_one", lighter)
        got = run("pictures", SHARDINGS["replicated"], executor="inline", loader_count=1)
    images = np.concatenate([rows["image"] for rows in got.rows])
    white = (images == 255).all(axis=(1, 2, 3))
    labels = np.concatenate([rows["label"] for rows in got.rows])
    assert set(labels[~white].tolist()) == {number for number in range(24) if not number % 3}


def test_damaged_files_are_bad_items() -> None:
    options: dict[str, Any] = {"on_error": "replace"}
    wanted = run("pictures", SHARDINGS["by rows"], damaged(), **options)
    with fakes():
        got = run("pictures", SHARDINGS["by rows"], damaged(), **options)
    assert same(got, wanted) and {bad.item for bad in got.report.bad} == {3, 8, 12}


def test_a_batch_waits_for_the_slowest_device() -> None:
    wanted = run("pictures", SHARDINGS["by rows"])
    with fakes() as devices:
        slow, gate, seen = devices[jax.local_devices()[2]], threading.Event(), threading.Event()
        others = [devices[jax.local_devices()[each]] for each in (0, 1, 3)]

        def wait() -> None:
            # the others have gone on to batches behind, as far as there are slots
            seen.set()
            assert gate.wait(30)

        def ahead() -> None:
            if all(len(device.pictures) >= 2 for device in others):
                gate.set()

        slow.before_decoding = wait
        for device in others:
            device.before_decoding = ahead
        got = run("pictures", SHARDINGS["by rows"], depth=3)
    assert seen.is_set() and same(got, wanted)


def test_what_a_decoder_of_one_device_raises_ends_the_run() -> None:
    from hydrax_gpu.errors import PlacementError

    def fail() -> None:
        raise RuntimeError("the driver is gone")

    with fakes() as devices:
        devices[jax.local_devices()[3]].before_decoding = fail
        with pytest.raises(PlacementError, match="RuntimeError: the driver is gone"):
            run("graph", SHARDINGS["by rows"])


def test_a_device_reads_what_was_decoded_when_it_is_there() -> None:
    """Its batch is filled, and its host memory free, behind the event that marks the files as decoded."""
    layout = Layout.build(4, {"image": ((64,), np.uint8, np.uint8), "label": ((), np.int32, np.int32)})
    shards = Shards(over("data", shape=(2,)), [layout], [0])
    jax_devices = jax.local_devices()[:2]
    devices = {each: FakeDevice(jax=False, automatic=False, index=i) for i, each in enumerate(jax_devices)}
    arena = Arena.create(1, layout.nbytes, workers=1, shared=False)
    dtypes = {"image": np.dtype(np.uint8), "label": np.dtype(np.int32)}
    there = {
        each: ShardLayout.of(layout, shards.of(0, 4), each, dtypes, list(dtypes), device.converts)
        for each, device in devices.items()
    }
    assert there[jax_devices[1]].rows_of == {"image": Part(2, 4, 0, 64), "label": Part(2, 4, 256, 4)}
    rings = DeviceRings(devices, arena, [there])
    events: dict[Any, FakeEvent] = {}
    streams: dict[Any, FakeStream] = {}
    for each, device in devices.items():
        events[each], streams[each] = device.new_event(), device.new_stream()
        device.latch(streams[each])
        device.record(events[each], streams[each])
    parts = rings.place(0, 1, 0, lambda: None, events.__getitem__, ["image"])
    for device in devices.values():
        device.run()
        assert [nbytes for _, _, nbytes in device.copies] == [8], "the labels alone"
    assert rings.copied() == []
    filled = parts["image"][jax_devices[0]].ready
    assert filled.reached < filled.recorded
    for each, device in devices.items():
        events[each].reached = events[each].recorded
        device.run()
    assert rings.copied() == [(0, 1)] and filled.reached == filled.recorded


@pytest.mark.parametrize(
    ("kind", "specs", "why"),
    [
        ("pictures", {"image": P("data", "model"), "label": P("data")}, "array 'image' is copied by the host"),
        ("graph", {"image": P("data"), "label": P()}, "the arrays image, label, which are made together"),
    ],
)
def test_where_it_cannot_be_workers_decode_and_a_note_says_why(kind: str, specs: Any, why: str) -> None:
    mesh = over("data", shape=(2, 2)).mesh
    sharding = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    wanted = run(kind, sharding)
    with fakes() as devices:
        got = run(kind, sharding)
    assert same(got, wanted) and not got.report.pictures
    assert not any(device.pictures or device.graph_rows for device in devices.values())
    assert any(f"workers decode the files of a group, and not the devices: {why}" in note for note in got.report.notes)


def test_a_device_that_cannot_decode_leaves_it_to_the_workers() -> None:
    wanted = run("pictures", SHARDINGS["by rows"])
    with fakes() as devices:
        devices[jax.local_devices()[1]].decoder_error = "nvImageCodec cannot be imported"
        got = run("pictures", SHARDINGS["by rows"])
    assert same(got, wanted) and not got.report.pictures
    assert got.report.notes == (
        "workers decode the files, and not the devices: ImportError: nvImageCodec cannot be imported",
    )
