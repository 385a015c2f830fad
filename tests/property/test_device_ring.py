"""Batches in device memory under every interleaving of host and device.

The real ring and the real table of slots, on a fake device whose streams are stepped one operation at a time, in an
order that hypothesis chooses. The workers scribble over a host slot as soon as it is free, computations that have yet
to run are all that reads a batch when it is dropped, and every one of them checks what it reads.

The same machine is run on devices that are broken: without the fence, without the order between filling and reading,
with host slots that are thought to be free too early. It has to find each of these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.slots import SlotState, SlotTable
from hydrax_gpu._place.regions import DeviceLayout
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.setup import ring_memory
from hydrax_gpu._spec import Layout
from hydrax_gpu.testing import FakeArray, FakeDevice

ROWS = 3
LAYOUTS = [
    Layout.build(ROWS, {"a": ((5,), "uint8", "float32"), "b": ((), "int32", "int32")}),
    Layout.build(ROWS, {"a": ((2, 3), "float32", "float32"), "b": ((7,), "uint8", "float16")}),
]
DTYPES = [{array.name: array.jax_dtype for array in layout.arrays} for layout in LAYOUTS]


class Corruption(AssertionError):
    """A computation has read something else than its batch."""


class World(RuleBasedStateMachine):
    """A loader around a ring. The state of the slots is in the real table, as in the engine."""

    fences = True
    orders_readers = True
    asks_for_copies = True

    @initialize(depth=st.integers(1, 3))
    def begin(self, depth: int) -> None:
        self.device = FakeDevice(jax=False, automatic=False, fences=self.fences, orders_readers=self.orders_readers)
        self.arena = Arena.create(depth, max(layout.nbytes for layout in LAYOUTS), workers=1, shared=False)
        layouts = [
            DeviceLayout.build(layout, dtypes, self.device.converts)
            for layout, dtypes in zip(LAYOUTS, DTYPES, strict=True)
        ]
        memory, _ = ring_memory(self.device, depth, layouts)
        self.ring = Ring(self.device, memory, self.arena, layouts)
        self.slots = SlotTable(depth)
        self.count = 0
        self.batches: dict[int, tuple[int, int, dict[str, FakeArray]]] = {}  # value → layout, rows, arrays
        self.released: list[tuple[int, int]] = []  # what the deleters have posted
        self.reads = 0
        self.read = 0

    # The workers and the engine.

    @precondition(lambda self: self.slots.free_count)
    @rule(layout=st.integers(0, len(LAYOUTS) - 1), rows=st.integers(1, ROWS))
    def a_batch_is_loaded_and_placed(self, layout: int, rows: int) -> None:
        taken = self.slots.take()
        assert taken is not None
        slot, generation = taken
        self.count += 1
        self.arena.slot(slot)[:] = bytes([0xBA]) * self.arena.shape.stride
        for view in LAYOUTS[layout].batch_views(self.arena.slot(slot), rows).values():
            view[...] = self.count % 251
        self.slots.filled(slot)
        self.slots.lend(slot)
        self.ring.fill(slot, generation, layout, rows)
        self.a_batch_is_about_to_be_exported(slot)
        arrays = self.ring.export(slot, layout, rows, partial(self.released.append, (slot, generation)))
        self.slots.copying(slot, generation)
        self.batches[self.count] = layout, rows, arrays
        for name, array in arrays.items():
            assert array.shape == (rows, *LAYOUTS[layout].batch_views(self.arena.slot(slot))[name].shape[1:])
            assert array.dtype == DTYPES[layout][name] and array.address % 256 == 0
        if not self.asks_for_copies:
            self.slots.copied(slot, generation)

    def a_batch_is_about_to_be_exported(self, slot: int) -> None: ...

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def the_engine_hears_of_a_release(self, data: st.DataObject) -> None:
        slot, generation = self.released.pop(data.draw(st.integers(0, len(self.released) - 1)))
        assert self.slots.release(slot, generation)
        self.ring.retire(slot)

    @rule()
    def the_engine_asks_for_copies(self) -> None:
        for slot, generation in self.ring.copied():
            assert self.slots.copied(slot, generation) or not self.asks_for_copies

    # The consumer.

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def a_computation_is_dispatched(self, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(sorted(self.batches)))
        _, _, arrays = self.batches[value]

        def check(*memory: np.ndarray[Any, Any]) -> None:
            self.read += 1
            for array in memory:
                if not (array == value % 251).all():
                    raise Corruption(f"batch {value} reads {array.ravel()[:8]}")

        self.reads += 1
        self.device.launch(check, *arrays.values())

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def a_batch_is_dropped(self, data: st.DataObject) -> None:
        del self.batches[data.draw(st.sampled_from(sorted(self.batches)))]

    # The device.

    @precondition(lambda self: self.device.runnable())
    @rule(data=st.data(), count=st.integers(1, 6))
    def the_device_goes_on(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            runnable = self.device.runnable()
            if not runnable:
                return
            self.device.step(data.draw(st.sampled_from(runnable)))

    @precondition(lambda self: self.device.runnable())
    @rule(data=st.data())
    def one_stream_goes_on_alone(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.device.runnable()))
        while not stream.blocked:
            self.device.step(stream)

    @invariant()
    def free_host_slots_are_scribbled_over(self) -> None:
        if hasattr(self, "slots"):
            for slot in range(len(self.slots)):
                if self.slots.state(slot) is SlotState.FREE:
                    self.arena.slot(slot)[:] = b"\xdd" * self.arena.shape.stride

    def teardown(self) -> None:
        """Everything comes to an end, and nothing was left out."""
        if not hasattr(self, "slots"):
            return
        self.batches.clear()
        self.device.run()
        while self.released:
            slot, generation = self.released.pop()
            assert self.slots.release(slot, generation)
            self.ring.retire(slot)
        self.device.run()
        for slot, generation in self.ring.copied():
            self.slots.copied(slot, generation)
        assert self.device.idle and self.read == self.reads
        assert self.slots.free_count == len(self.slots)
        self.ring.close()
        self.ring.close()
        del self.ring
        assert self.device.free_bytes("device") == 1 << 30, "the ring's memory was given back"


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


class WithoutFences(World):
    fences = False


class ReadersDoNotWait(World):
    orders_readers = False


class HostSlotsAreReusedAtOnce(World):
    asks_for_copies = False


class ReadersDoNotWaitForKernels(World):
    """Only for the copy."""

    def a_batch_is_about_to_be_exported(self, slot: int) -> None:
        self.ring._slots[slot].filled = self.ring._slots[slot].copied


@pytest.mark.parametrize(
    "broken", [WithoutFences, ReadersDoNotWait, HostSlotsAreReusedAtOnce, ReadersDoNotWaitForKernels]
)
def test_the_machine_finds_what_it_is_there_for(broken: type[World]) -> None:
    finding = settings(
        max_examples=500, stateful_step_count=50, deadline=None, phases=[Phase.generate], report_multiple_bugs=False,
        print_blob=False, database=None,
    )  # fmt: skip
    with pytest.raises(Corruption):
        run_state_machine_as_test(broken, settings=finding)


class Story:
    """One slot and one batch at a time, told step by step."""

    def __init__(self, **options: Any) -> None:
        self.device = FakeDevice(jax=False, automatic=False, **options)
        self.arena = Arena.create(1, LAYOUTS[0].nbytes, workers=1, shared=False)
        layouts = [DeviceLayout.build(LAYOUTS[0], DTYPES[0], self.device.converts)]
        self.ring = Ring(self.device, ring_memory(self.device, 1, layouts)[0], self.arena, layouts)
        self.released = 0
        self.generation = 0

    def place(self, value: int) -> dict[str, FakeArray]:
        self.generation += 1
        for view in LAYOUTS[0].batch_views(self.arena.slot(0)).values():
            view[...] = value
        self.ring.fill(0, self.generation, 0, ROWS)

        def release() -> None:
            self.released += 1

        return self.ring.export(0, 0, ROWS, release)


def values_of(seen: list[float]) -> Callable[..., None]:
    return lambda *memory: seen.extend(float(array.ravel()[0]) for array in memory)


@pytest.mark.parametrize("fences", [True, False])
def test_a_slow_computation_reads_its_batch_although_that_was_dropped_long_ago(fences: bool) -> None:
    """The story of the essay, with the fence and without."""
    story, seen = Story(fences=fences), list[float]()
    arrays = story.place(7)
    open_latch = story.device.latch()  # XLA is busy with an earlier step
    story.device.launch(values_of(seen), arrays["a"])
    del arrays
    assert story.released == 1, "as on CUDA, the deleter has run although nothing was read"
    story.ring.retire(0)
    story.device.run()
    assert story.ring.copied() == [(0, 1)]
    later = story.place(8)  # the host does not wait
    story.device.run()
    assert story.ring.copied() == ([] if fences else [(0, 2)]), "it is the device that waits"
    open_latch()
    story.device.run()
    assert seen == ([7.0] if fences else [8.0])
    story.device.launch(values_of(seen), later["a"], later["b"])
    story.device.run()
    assert seen[1:] == [8.0, 8.0]


def test_a_slot_that_was_lent_and_not_retired_is_not_written() -> None:
    story = Story()
    arrays = story.place(1)
    with pytest.raises(AssertionError, match="device slot 0 was lent and not retired"):
        story.place(2)
    del arrays
    with pytest.raises(AssertionError, match="not retired"):
        story.place(2)
    story.ring.retire(0)
    story.place(2)


def test_a_fence_of_one_slot_holds_up_no_other() -> None:
    device = FakeDevice(jax=False, automatic=False)
    arena = Arena.create(2, LAYOUTS[0].nbytes, workers=1, shared=False)
    layouts = [DeviceLayout.build(LAYOUTS[0], DTYPES[0], device.converts)]
    ring = Ring(device, ring_memory(device, 2, layouts)[0], arena, layouts)
    ring.fill(0, 1, 0, ROWS)
    first = ring.export(0, 0, ROWS, lambda: None)
    device.run()
    assert ring.copied() == [(0, 1)]
    device.latch()
    device.launch(lambda *_: None, *first.values())
    del first
    ring.retire(0)  # its fence waits for the latch
    ring.fill(1, 1, 0, ROWS)
    device.run()
    assert ring.copied() == [(1, 1)]


def test_all_arrays_of_a_batch_are_brought_over_in_one_copy() -> None:
    story = Story()
    story.place(1)
    (copy,) = story.device.copies
    assert copy[1] == story.arena.address(0)
    assert copy[2] == LAYOUTS[0].arrays[-1].offset + LAYOUTS[0].arrays[-1].nbytes, "and no byte more than is used"


def test_closing_waits_until_host_memory_is_no_longer_read() -> None:
    story = Story()
    story.place(1)
    assert any(operation.source >= 0 for stream in story.device.streams for operation in stream.operations)
    story.ring.close()
    assert not any(operation.source >= 0 for stream in story.device.streams for operation in stream.operations)
