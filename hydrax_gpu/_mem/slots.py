"""The life of a slot, as a table that only its owner changes.

    FREE → FILLING → FULL → LENT → FREE                the batch reads the slot
                       │      └→ COPYING → LENT → FREE  it reads a copy of it in the memory of a device
                       │              └→ RETIRED → FREE  the same, dropped before the copy was known to be done
                       └───────────────────→ FREE       a batch that is left out

With a device, a slot is a pair: host memory that workers fill, and device memory of the same size that JAX reads. The
next batch may be written to the host memory when the batch is gone and its copy is done; when it may be written to the
device memory is another question, which only the device can answer (`_place/ring.py`).

A slot holds one batch. Each time round it gets a new *generation*, and whatever speaks of a slot names the generation
it means: a worker that finishes late, or an array that dies late, speaks of a generation that is over and is ignored.
"""

from __future__ import annotations

import enum

__all__ = ["SlotState", "SlotTable"]


class SlotState(enum.Enum):
    """Where a slot is in its life."""

    FREE = "free"
    """Nobody reads or writes it."""
    FILLING = "filling"
    """Workers write its rows."""
    FULL = "full"
    """All rows are written; it waits for its turn."""
    LENT = "lent"
    """JAX arrays or NumPy views of it are out; nobody may write."""
    COPYING = "copying"
    """The same, and a device may still read its host memory."""
    RETIRED = "retired"
    """Nothing refers to the batch any more, but a device may still read its host memory."""


class SlotTable:
    """The state and generation of `depth` slots.

    Free slots are taken last-freed-first: that slot's memory is the likeliest to be in a cache still.
    """

    __slots__ = ("_free", "_generation", "_state")

    def __init__(self, depth: int) -> None:
        self._state = [SlotState.FREE] * depth
        self._generation = [0] * depth
        self._free = list(range(depth - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._state)

    @property
    def free_count(self) -> int:
        """How many slots are FREE."""
        return len(self._free)

    def count(self, state: SlotState) -> int:
        """How many slots are in a state."""
        return self._state.count(state)

    def state(self, slot: int) -> SlotState:
        """Which state a slot is in."""
        return self._state[slot]

    def generation(self, slot: int) -> int:
        """How often a slot was taken."""
        return self._generation[slot]

    def is_current(self, slot: int, generation: int) -> bool:
        """Whether a slot was not taken again since it had this generation."""
        return self._generation[slot] == generation

    def take(self) -> tuple[int, int] | None:
        """FREE → FILLING of some slot; returns it and its new generation, or None when none is free."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._generation[slot] += 1
        self._state[slot] = SlotState.FILLING
        return slot, self._generation[slot]

    def filled(self, slot: int) -> None:
        """FILLING → FULL."""
        self._move(slot, SlotState.FILLING, SlotState.FULL)

    def lend(self, slot: int) -> None:
        """FULL → LENT."""
        self._move(slot, SlotState.FULL, SlotState.LENT)

    def discard(self, slot: int) -> None:
        """FULL → FREE."""
        self._move(slot, SlotState.FULL, SlotState.FREE)
        self._free.append(slot)

    def copying(self, slot: int, generation: int) -> None:
        """LENT → COPYING: what the batch reads is a copy, which is not known to be done.

        This must be said before the batch can be released; said too late it would come to a slot that is filled again.
        """
        if self._generation[slot] != generation:
            raise AssertionError(f"slot {slot} has generation {self._generation[slot]}, not {generation}")
        self._move(slot, SlotState.LENT, SlotState.COPYING)

    def copied(self, slot: int, generation: int) -> bool:
        """COPYING → LENT, or RETIRED → FREE, if `generation` is the current one; returns whether it was copied."""
        if self._generation[slot] != generation:
            return False
        if self._state[slot] is SlotState.COPYING:
            self._state[slot] = SlotState.LENT
        elif self._state[slot] is SlotState.RETIRED:
            self._state[slot] = SlotState.FREE
            self._free.append(slot)
        else:
            return False
        return True

    def release(self, slot: int, generation: int) -> bool:
        """LENT → FREE, or COPYING → RETIRED, if `generation` is the current one; returns whether it was lent."""
        if self._generation[slot] != generation:
            return False
        if self._state[slot] is SlotState.LENT:
            self._state[slot] = SlotState.FREE
            self._free.append(slot)
        elif self._state[slot] is SlotState.COPYING:
            self._state[slot] = SlotState.RETIRED
        else:
            return False
        return True

    def describe(self) -> str:
        """One line for messages: `slot 0 lent (generation 7), slot 1 filling (generation 8)`."""
        return ", ".join(
            f"slot {i} {state.value} (generation {generation})"
            for i, (state, generation) in enumerate(zip(self._state, self._generation, strict=True))
        )

    def _move(self, slot: int, before: SlotState, after: SlotState) -> None:
        if self._state[slot] is not before:
            raise AssertionError(f"slot {slot} is {self._state[slot].value}, cannot go {before.value} → {after.value}")
        self._state[slot] = after
