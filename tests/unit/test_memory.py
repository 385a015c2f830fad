"""Mapped memory, the arena in it, and the table of its slots."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.mapping import HUGE_PAGE, attach, create
from hydrax_gpu._mem.slots import SlotState, SlotTable


def mapped_bytes(needle: str) -> int:
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if needle in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


@pytest.mark.parametrize("shared", [True, False])
def test_a_mapping_is_aligned_zeroed_writable_and_rounded_up(shared: bool) -> None:
    mapping = create(100, shared=shared)
    array = np.frombuffer(mapping.memory, np.uint8)
    assert mapping.size == HUGE_PAGE == array.size
    assert array.ctypes.data % HUGE_PAGE == 0
    assert not array.any()
    array[-1] = 1
    assert (mapping.fd >= 0) == shared
    mapping.close_fd()
    mapping.close_fd()
    assert mapping.fd == -1


def test_shared_memory_has_no_name_and_no_entry_in_dev_shm() -> None:
    before = set(os.listdir("/dev/shm"))
    mapping = create(HUGE_PAGE, shared=True)
    assert set(os.listdir("/dev/shm")) == before
    assert "memfd:hydrax_gpu" in os.readlink(f"/proc/self/fd/{mapping.fd}")
    mapping.close_fd()


def test_another_process_sees_the_same_bytes() -> None:
    mapping = create(3 * HUGE_PAGE, shared=True)
    view = np.frombuffer(mapping.memory, np.uint8)
    view[:4] = [1, 2, 3, 4]
    code = (
        "import sys, numpy as np\n"
        "from hydrax_gpu._mem.mapping import attach\n"
        "m = attach(int(sys.argv[1]), int(sys.argv[2]))\n"
        "v = np.frombuffer(m.memory, np.uint8)\n"
        "assert v[:4].tolist() == [1, 2, 3, 4]; v[-1] = 99\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(mapping.fd), str(mapping.size)],
        pass_fds=(mapping.fd,),
        check=True,
        timeout=30,
    )
    assert view[-1] == 99
    mapping.close_fd()


def test_memory_stays_mapped_as_long_as_a_view_of_it_and_no_longer() -> None:
    gc.collect()
    before = mapped_bytes("memfd:hydrax_gpu")
    mapping = create(5 * HUGE_PAGE, shared=True)
    mapping.close_fd()
    view = np.frombuffer(mapping.memory, np.uint8)[7:9]
    del mapping
    assert mapped_bytes("memfd:hydrax_gpu") == before + 5 * HUGE_PAGE
    view[0] = 1
    del view
    gc.collect()
    assert mapped_bytes("memfd:hydrax_gpu") == before


def test_more_memory_than_there_is_says_how_much_and_what_to_do() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError, match=r"1,152,921,504,606,846,976 bytes.*lower depth or batch_size"):
        create(1 << 60, shared=True)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(ValueError, match="at least 1"):
        create(0, shared=False)


def test_attach_closes_the_descriptor_also_when_it_fails() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(OSError, match=r".+"):
        attach(reading, HUGE_PAGE)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reading)


@pytest.mark.parametrize(("depth", "size", "workers"), [(1, 1, 1), (3, 4096, 2), (5, 10_000, 700)])
def test_slots_and_status_words_do_not_overlap(depth: int, size: int, workers: int) -> None:
    arena = Arena.create(depth, size, workers=workers, shared=False)
    for slot in range(depth):
        np.frombuffer(arena.slot(slot), np.uint8)[:] = slot + 1
    assert arena.status.nbytes >= 8 * (workers + 1)
    assert list(arena.status) == [0] * len(arena.status)
    for word in range(workers + 1):
        arena.status[word] = -1
    for slot in range(depth):
        bytes_of_slot = np.frombuffer(arena.slot(slot), np.uint8)
        assert bytes_of_slot.size >= size and (bytes_of_slot == slot + 1).all()


def test_a_lease_is_released_when_its_last_view_is_gone_and_once() -> None:
    arena = Arena.create(2, 4096, workers=1, shared=False)
    released: list[str] = []
    lease = arena.lease(1, lambda: released.append("first"))
    other = arena.lease(1, lambda: released.append("second"))
    view = np.ndarray((8,), np.uint8, buffer=lease)
    part = view[2:4].view(np.int8)
    del lease, view
    assert released == []
    del other
    assert released == ["second"], "two leases of a slot are told apart"
    del arena
    part[:] = 1  # the arena's owner is gone; the memory is not
    del part
    assert released == ["second", "first"]


def test_a_slot_goes_round_and_old_generations_are_ignored() -> None:
    table = SlotTable(1)
    assert table.take() == (0, 1)
    assert table.take() is None
    table.filled(0)
    table.lend(0)
    assert not table.release(0, 0)
    assert table.release(0, 1)
    assert not table.release(0, 1)
    assert table.take() == (0, 2)
    assert not table.release(0, 1), "an array of the generation before dies while the slot is filled again"
    assert table.describe() == "slot 0 filling (generation 2)"


@pytest.mark.parametrize("misuse", ["filled", "lend"])
def test_a_transition_that_does_not_exist_is_an_assertion(misuse: str) -> None:
    table = SlotTable(2)
    with pytest.raises(AssertionError, match="slot 0 is free"):
        getattr(table, misuse)(0)


def test_what_is_said_of_a_slot_too_late_is_an_assertion() -> None:
    table = SlotTable(1)
    table.take()
    table.filled(0)
    table.lend(0)
    table.release(0, 1)
    with pytest.raises(AssertionError, match="slot 0 is free, cannot go lent → copying"):
        table.copying(0, 1)
    table.take()
    with pytest.raises(AssertionError, match="slot 0 has generation 2, not 1"):
        table.copying(0, 1)


ACTIONS = ["take", "fill", "lend", "copying", "copied", "release", "discard"]
NEXT = {
    ("fill", SlotState.FILLING): SlotState.FULL,
    ("lend", SlotState.FULL): SlotState.LENT,
    ("discard", SlotState.FULL): SlotState.FREE,
    ("copying", SlotState.LENT): SlotState.COPYING,
    ("copied", SlotState.COPYING): SlotState.LENT,
    ("copied", SlotState.RETIRED): SlotState.FREE,
    ("release", SlotState.LENT): SlotState.FREE,
    ("release", SlotState.COPYING): SlotState.RETIRED,
}


@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5), st.booleans())))
def test_the_table_agrees_with_a_simple_model(depth: int, actions: list[tuple[str, int, bool]]) -> None:
    table, model, freed = SlotTable(depth), [SlotState.FREE] * depth, list(range(depth))[::-1]
    for action, number, late in actions:
        slot = number % depth
        generation = table.generation(slot)
        after = NEXT.get((action, model[slot]))
        if action == "take":
            taken = table.take()
            assert (taken[0] if taken else None) == (freed.pop() if freed else None)
            if taken:
                model[taken[0]] = SlotState.FILLING
        elif action in ("copied", "release"):
            call = getattr(table, action)
            if late:
                assert not call(slot, generation - 1)
                after = None
            else:
                assert call(slot, generation) == (after is not None)
        elif after is None:
            continue
        elif action == "fill":
            table.filled(slot)
        elif action == "lend":
            table.lend(slot)
        elif action == "discard":
            table.discard(slot)
        else:
            table.copying(slot, generation)
        if after is not None:
            model[slot] = after
            if after is SlotState.FREE:
                freed.append(slot)
        assert [table.state(s) for s in range(depth)] == model
        assert table.free_count == len(freed)
