"""What the core asks about caches: whether a batch is read from one or loaded.

    LOAD   rows are loaded in the loader's layout; a worker may take some of them from a cache of that layout
    READ   all rows are read, in the cache's layout
    WAIT   all rows are in the cache, or about to be: the writers have them. `Settled` is when to ask again
    DROP   not all rows are in the cache, and there is no other way to have them

A batch is of one layout, so that it is read only when all of it is there; and when some of it turns out to be damaged,
all of it is loaded. With several processes the others would not know of that: then another item is read in the place of
one that is damaged, as another is loaded there in the place of one that is bad. A row that other processes have too
cannot be replaced so, since they would go on with another item in it: that ends the run.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from hydrax_gpu._exec.protocol import Failure
from hydrax_gpu._plan import BatchPlan

__all__ = ["UNREAD", "Agreed", "Caching", "Form", "NoCaching"]

UNREAD = Failure(
    0,
    "its entry in the cache is damaged, or gone, and all processes had agreed to read it. `hydrax-gpu cache verify` "
    "lists what is damaged, `repair` takes it out",
    "",
    None,
)
"""What is said of an item that all processes were to read, when one of them cannot."""


class Form(enum.Enum):
    """How a batch gets its rows; see the module's docstring."""

    LOAD = "load"
    READ = "read"
    WAIT = "wait"
    DROP = "drop"


class Caching(Protocol):
    """Knows what is in the caches."""

    def form(self, plan: BatchPlan) -> Form:
        """How this batch gets its rows. It may be asked again when it was `WAIT`."""
        ...

    def loads(self, plan: BatchPlan) -> bool:
        """Whether this batch can be loaded when it cannot be read."""
        ...


class Agreed(Protocol):
    """Knows what to do where all processes have agreed to read a batch, and this one cannot read some of it."""

    def stands_in(self, plan: BatchPlan, item: int) -> bool:
        """Whether an item can be read in the place of another."""
        ...

    def refusal(self, plan: BatchPlan, rows: Sequence[int]) -> Exception | None:
        """The error to end the run with, if these rows cannot be replaced."""
        ...


class NoCaching:
    """Nothing is in a cache."""

    def form(self, plan: BatchPlan) -> Form:
        """As `Caching.form`: LOAD."""
        return Form.LOAD

    def loads(self, plan: BatchPlan) -> bool:
        """As `Caching.loads`: True."""
        return True
