"""DALI graphs that a device runs: on the fake device, whose DALI is the CPU's, so that rows are equal to the bit."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader, ErrorPolicy
from hydrax_gpu._place import backends
from hydrax_gpu.loaders import DaliLoader, _dali_pipeline
from hydrax_gpu.testing import FakeDevice
from tests import cupy_stub, dali_stub, decoded_lifetime
from tests import dali_graphs as graphs
from tests import image_files as pictures
from tests.gpu.machines import FakeMachine
from tests.gpu.pictures import Run, damaged, on_the_cpu, photographs, run
from tests.unit.test_cuda_device import on_host

ARRAYS = {"image": ((24, 32, 3), np.uint8, np.uint8), "label": ((), np.int32, np.int32)}
FILES = photographs()[:13]


def augmenting(**options: Any) -> DaliLoader:
    return DaliLoader(graphs.augment_there, fields=("image", "label"), **options)


def both(load: DaliLoader, data: Sequence[Any] = FILES, device: FakeDevice | None = None, **options: Any) -> Run:
    """What a device makes of it, which is what the workers make of it."""
    options = {"arrays": ARRAYS, "epochs": 1} | options
    wanted = on_the_cpu(load, data, **options)
    got = run(load, data, (device or FakeDevice()).in_use(), **options)
    assert got.rows == wanted.rows and len(got.images) == len(wanted.images) > 0
    assert all(np.array_equal(a, b) for a, b in zip(got.images, wanted.images, strict=True))
    bad = [[(each.item, each.error) for each in some.report.bad] for some in (got, wanted)]
    assert bad[0] == bad[1] and got.report.dropped_batches == wanted.report.dropped_batches
    return got


@pytest.mark.parametrize(
    "how",
    [
        {"executor": "process", "loader_count": 1},
        {"executor": "inline"},
        {"remainder": "short", "size": 4, "loader_count": 2, "depth": 2, "epochs": 2},
    ],
    ids=str,
)
def test_rows_are_those_of_the_cpu_to_the_bit(how: dict[str, Any]) -> None:
    device = FakeDevice()
    got = both(augmenting(), device=device, **how)
    assert device.graph_rows == 13 * how.get("epochs", 1), "what repeats others is not run again"
    assert got.report.pictures == "a fake device" and not got.report.notes and not got.report.fallbacks
    assert "decoded by a fake device" in str(got.report)


def test_validation_has_its_own_graph() -> None:
    def images(device: FakeDevice | None) -> list[np.ndarray[Any, Any]]:
        training, validation = (
            DataGroup(4, FILES[:8], loader_arrays=ARRAYS, **options) for options in ({"seed": 1}, {})
        )  # fmt: skip
        found: list[np.ndarray[Any, Any]] = []
        with Dataloader(
            augmenting(), training, validation=("batch", 1, validation), executor="thread", delivery="alias",
            end_at=("epoch", 1),
        ) as loader:  # fmt: skip
            for batch in loader:
                found += list(np.array(batch.arrays["image"]))
                del batch
        return found

    wanted, device = images(None), FakeDevice()
    with device.in_use():
        got = images(device)
    assert device.graph_rows == len(wanted) == 8 + 2 * 8
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def counted_copies(device: FakeDevice) -> list[int]:
    """The sizes of copies within the device, from now on."""
    copied: list[int] = []
    copy = device.copy

    def counted(stream: Any, destination: int, source: int, nbytes: int) -> None:
        copied.append(nbytes)
        copy(stream, destination, source, nbytes)

    device.copy = counted  # type: ignore[method-assign]
    return copied


def test_outputs_are_copied_and_pixels_never_come_from_the_host() -> None:
    device = FakeDevice()
    copied = counted_copies(device)
    both(augmenting(), FILES[:10], device, size=5)
    assert sum(copied) == 10 * 24 * 32 * 3
    assert all(nbytes < 24 * 32 * 3 for _, _, nbytes in device.copies), "no pixels come from the host"


# What a device does not run.


def test_what_the_device_refuses_a_worker_runs() -> None:
    device = FakeDevice()
    kept = {data for data, number in FILES if number % 3}
    device.refuses = lambda data: None if data in kept else "it does not like it"
    got = both(augmenting(), device=device)
    line = "a fake device could not run the graph on an item (it does not like it), a worker does"
    assert got.report.fallbacks == {line: 5}
    assert device.graph_rows == 8, "the others are not run again"


@pytest.mark.parametrize("mode", ["drop", "replace"])
def test_damaged_files_are_bad_items_as_on_the_cpu(mode: Any) -> None:
    got = both(augmenting(), damaged()[:13], on_error=ErrorPolicy(mode=mode))
    assert {bad.item for bad in got.report.bad} == {3, 12}, "DALI reads 8, which ends as it should"
    ((line, count),) = got.report.fallbacks.items()
    assert "could not run the graph on an item (Error in CPU operator" in line
    assert count == 1, "what has no header of a picture is never given to DALI"


def test_an_output_that_is_not_as_declared_is_told_by_a_worker() -> None:
    load = DaliLoader(graphs.as_large_as_it_is, fields=("image", "label"))
    policy = ErrorPolicy(mode="replace")
    data = [(pictures.encoded(pictures.photograph(32, 24 if number % 5 else 25)), number) for number in range(10)]
    device = FakeDevice()
    copied = counted_copies(device)
    got = both(load, data, device, on_error=policy)
    assert sum(copied) == 10 * 24 * 32 * 3, "nothing of what does not fit"
    assert {bad.item for bad in got.report.bad} == {0, 5}
    assert all("output 'image' has shape (25, 32, 3)" in bad.error for bad in got.report.bad)
    assert list(got.report.fallbacks) == [
        "a fake device could not run the graph on an item (output 'image' is not as it was declared), a worker does"
    ]


def test_smaller_outputs_are_padded_there() -> None:
    arrays = {"image": ((30, 40, 3), np.uint8, np.uint8), "label": ((), np.int32, np.int32)}
    data = [(pictures.encoded(pictures.photograph(20 + number, 24)), number) for number in range(8)]
    load = DaliLoader(graphs.as_large_as_it_is, fields=("image", "label"), pad={"image": 7})
    got = both(load, data, arrays=arrays)
    assert not got.report.fallbacks and all((image[24:] == 7).all() for image in got.images)


def test_items_with_more_bytes_than_there_is_room_for_are_a_workers() -> None:
    most = sorted(len(data) for data, _ in FILES)[6]
    device = FakeDevice()
    got = both(augmenting(encoded_bytes=most + 200), device=device)
    assert device.graph_rows in range(5, 10)
    ((line, count),) = got.report.fallbacks.items()
    assert line.startswith("a worker ran the DALI graph of an item for a device: its fields have more bytes than enc")
    assert device.graph_rows + count == 13


def test_items_of_another_kind_are_a_workers() -> None:
    data = [{"label": number, "image": image} if number % 4 == 2 else (image, number) for image, number in FILES]
    device = FakeDevice()
    got = both(DaliLoader(graphs.augment_there, fields=None), [graphs.Photo(*each) for each in FILES])
    assert not got.report.fallbacks
    with pytest.raises(Exception, match="fields="):  # as on the CPU: such items cannot have names given
        both(augmenting(), data, device, on_error="raise")
    mixed = [graphs.Photo(*each) if each[1] % 4 else {"label": each[1], "image": each[0]} for each in FILES]
    got = both(DaliLoader(graphs.augment_there), mixed, device)
    ((line, count),) = got.report.fallbacks.items()
    assert "its item has other fields than the first one, which has label, image" in line and count == 9


# Who runs it.


def test_without_an_operator_for_a_gpu_workers_run_it_and_a_note_says_what_to_do() -> None:
    device = FakeDevice()
    got = both(DaliLoader(graphs.augment_here, fields=("image", "label"), device="auto"), device=device)
    assert not device.graph_rows and not got.report.pictures
    (note,) = got.report.notes
    assert note.startswith("workers decode the files, and not a fake device: ValueError: nothing in the DALI graph is")
    assert "device=sample.mixed" in note


def test_a_graph_of_gpu_operators_is_one_for_a_gpu() -> None:
    """Which can be told without one: it is only defined, and not built."""
    from hydrax_gpu.loaders._dali_graph import Settings, blueprint_of

    names = ("image", "label")
    for graph, wanted in ((graphs.augment_there, True), (graphs.augment_here, False), (graphs.only_there, True)):
        found = blueprint_of(graph, names, names, True, Settings(1, device_id=0))
        assert found.on_device is wanted
        assert found.images == {"field_0"}


@pytest.mark.parametrize("delivery", ["auto", "copy"])
def test_where_a_gpu_was_asked_for_and_is_not_used_it_is_said(delivery: Any, caplog: pytest.LogCaptureFixture) -> None:
    text = "workers do on the CPU what the loader was to do on a GPU (device='gpu')"
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        got = on_the_cpu(augmenting(device="gpu"), FILES[:5], arrays=ARRAYS, epochs=1)
    assert got.report.notes and got.report.notes[-1].startswith(text) and caplog.text.count(text) == 1
    device = FakeDevice()
    for load in (augmenting(device="gpu"), augmenting(device="auto"), augmenting(device="cpu")):
        got = run(load, FILES[:5], device.in_use(), arrays=ARRAYS, epochs=1, delivery=delivery)
        assert any(note.startswith(text) for note in got.report.notes) == load.wants_device
    for load in (augmenting(device="cpu"), augmenting(encoded_bytes=0)):
        got = run(load, FILES[:5], device.in_use(), arrays=ARRAYS, epochs=1)
        assert not got.report.pictures and not got.report.notes
    assert device.graph_rows == 0


def test_a_device_without_dali_leaves_it_to_the_workers() -> None:
    device = FakeDevice()
    device.decoder_error = "DALI's build for CUDA is not installed"
    got = both(augmenting(device="gpu"), device=device)
    notes = got.report.notes
    assert notes[0] == "workers decode the files, and not a fake device: ImportError: " + device.decoder_error
    assert notes[1].startswith("workers do on the CPU what the loader was to do on a GPU")


def test_numbers_of_64_bits_keep_a_batch_from_being_shared_and_a_note_says_so() -> None:
    arrays = ARRAYS | {"label": ((), np.int64, np.int32)}
    device = FakeDevice()
    got = both(DaliLoader(graphs.augment, fields=("image", "label"), device="gpu"), device=device, arrays=arrays)
    assert any("64-bit arrays" in note for note in got.report.notes) and not device.graph_rows


def test_what_goes_to_workers_knows_nothing_of_the_data() -> None:
    load = augmenting()
    group = DataGroup(4, FILES, loader_arrays=ARRAYS)
    from hydrax_gpu._mem.graphs import with_graph
    from hydrax_gpu.group import layout_of

    layout = layout_of(group)
    found = load.graph_files(layout, [lambda: 0], True)
    more = with_graph(layout, found)
    sent = pickle.loads(pickle.dumps(more))
    assert sent.encoded[0].rows.rows.names == ("image", "label") == sent.encoded[0].names
    assert len(pickle.dumps(more)) < 2500
    assert more.encoded[0].row_nbytes >= 1 << 16 and more.nbytes == layout.nbytes + 4 * more.encoded[0].row_nbytes


# Pipelines of the user's.


def test_a_pipeline_of_the_users_runs_there_if_it_is_asked_to() -> None:
    options: dict[str, Any] = {
        "inputs": ("image", "label"),
        "outputs": ("image", "label"),
        "fields": ("image", "label"),
    }
    for device_name, rows in (("gpu", 13), ("auto", 0)):
        device = FakeDevice()
        load = DaliLoader.from_pipeline(graphs.as_it_is, device=device_name, **options)
        got = both(load, device=device)
        assert device.graph_rows == rows and not got.report.fallbacks
    with pytest.raises(ValueError, match=r"is for GPU 0: run it there, with device='gpu'"):
        DaliLoader.from_pipeline(graphs.for_gpu(), **options)


def test_what_a_pipeline_for_a_gpu_refuses_is_a_bad_item_since_no_worker_can_run_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_dali_pipeline, "_serialize", lambda pipeline: b"DALI needs a GPU for that")
    load = DaliLoader.from_pipeline(
        graphs.for_gpu(), inputs=["image", "label"], outputs=["image", "label"], fields=("image", "label"), device="gpu"
    )
    with pytest.raises(Exception, match=r"the pipeline was made for GPU 0, and cannot run in a worker"):
        run(load, FILES[:5], arrays=ARRAYS, epochs=1, on_error="raise")
    # on a device, workers only read for it, and need not make it
    region = np.zeros(1 << 16, np.uint8)
    arrays = {"image": np.zeros((24, 32, 3), np.uint8), "label": np.zeros((), np.int32)}
    assert load.encode(FILES[0], arrays, {"image": region}, 1) is None


# Lifetimes.


def lifetime(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many batches have changed under a reader."""
    load = DaliLoader(graphs.spread, fields=("x", "y"))
    arrays = {"x": ((16,), np.int32, np.int32), "y": ((), np.int32, np.int32)}
    group = DataGroup(4, [(np.int32(4 * n), np.int32(n)) for n in range(60)], loader_arrays=arrays)
    wrong = 0
    for read, indices in decoded_lifetime.reads(FakeMachine(), monkeypatch, load, group):
        numbers = np.array(indices)
        wrong += not (read == np.stack([4 * numbers, 4 * numbers, numbers], 1)).all()
    return wrong


def test_rows_do_not_change_under_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lifetime(monkeypatch) == 0


def test_they_do_if_the_copies_do_not_wait_for_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded_lifetime.without_the_decoders_fence(monkeypatch)
    assert lifetime(monkeypatch) > 0


def test_a_batch_that_is_handed_out_is_read_when_it_has_been_decoded() -> None:
    machine = FakeMachine()
    device = machine.device
    load = DaliLoader(graphs.spread, fields=("x", "y"))
    arrays = {"x": ((16,), np.int32, np.int32), "y": ((), np.int32, np.int32)}
    group = DataGroup(4, [(np.int32(4 * n), np.int32(n)) for n in range(60)], loader_arrays=arrays)
    with machine.in_use(), Dataloader(
        load, group, depth=2, executor="thread", delivery="alias", timeout_sec=30
    ) as loader:  # fmt: skip
        batch = next(loader)
        stream = loader._placer._files._stream  # type: ignore[union-attr]
        open_latch = device.latch(stream)
        del batch
        try:
            for _ in range(2):  # the second of them comes into the slot that is free now
                batch = next(loader)
                read, indices = machine.read(batch.arrays), list(batch.indices)
                del batch
            device.run()
            assert stream.operations and not read
        finally:
            open_latch()
        numbers = np.array(indices)
        np.testing.assert_array_equal(machine.results(read), np.stack([4 * numbers, 4 * numbers, numbers], 1))


def test_outputs_that_are_let_go_of_too_early_are_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this shows is that the fake would show it."""
    from hydrax_gpu._place.graphs import GraphDecoder

    decode = GraphDecoder.decode

    def forgetful(self: GraphDecoder, *given: Any) -> Any:
        result = decode(self, *given)
        self._held.clear()
        return result

    monkeypatch.setattr(GraphDecoder, "decode", forgetful)
    with pytest.raises(AssertionError):
        both(augmenting())


# CUDA, of which stubs stand in.


def test_the_calls_to_cupy_and_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = on_the_cpu(augmenting(), damaged()[:13], arrays=ARRAYS, epochs=1, on_error="replace")
    runtime = cupy_stub.install(monkeypatch)
    made = dali_stub.install(monkeypatch)
    got = run(
        augmenting(), damaged()[:13], backends.replaced(on_host), arrays=ARRAYS, epochs=1, on_error="replace"
    )  # fmt: skip
    assert got.rows == wanted.rows and got.report.pictures == "a stub of a GPU"
    assert all(np.array_equal(a, b) for a, b in zip(got.images, wanted.images, strict=True))
    assert {bad.item for bad in got.report.bad} == {3, 12}
    assert {each["device_id"] for each in made} == {0, None} and all(each["prefetch_queue_depth"] == 1 for each in made)
    kinds = [(call[0], call[4]) for call in runtime.calls if call[0] == "memcpyAsync"]
    assert ("memcpyAsync", 3) in kinds and ("memcpyAsync", 1) in kinds, "outputs of both kinds"


def test_a_graph_that_reads_something_else_on_a_gpu_is_left_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy_stub.install(monkeypatch)
    dali_stub.install(monkeypatch)
    got = run(
        DaliLoader(graphs.other_there, fields=("image", "label")), FILES[:5], backends.replaced(on_host),
        arrays={"image": ((1,), np.int32, np.int32), "label": ((), np.int32, np.int32)}, epochs=1,
    )  # fmt: skip
    assert not got.report.pictures and any("reads or decodes other fields on a GPU" in x for x in got.report.notes)
