"""Which item stands in for one that cannot be loaded: arithmetic, like everything about the order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hydrax_gpu._plan.groups import GroupPlan
from hydrax_gpu._plan.order import permute
from hydrax_gpu._plan.philox import Purpose
from hydrax_gpu._plan.seeds import item_seeds

__all__ = ["TRIES", "substitutes"]

TRIES = 100
"""Substitutes to try for an item. With half of all items bad, no good one is among them once in 10**30 times."""


def substitutes(group: GroupPlan, pass_: int, item: int, *, seeded: bool) -> Iterator[tuple[int, int | None]]:
    """Other items of the same group in a random order, a pure function of (seed, pass, item).

    The items that follow `item` in a cyclic order drawn for the pass: different items begin at different places, so the
    first substitutes of different items are different, too.

    Args:
        group: the group.
        pass_: how often it was gone through before.
        item: the item to be replaced.
        seeded: whether items have seeds (training) or not (validation, where all passes are alike).

    Yields:
        `(index, seed)`: the seed is that which the item has in this pass anyway, None if not `seeded`.
    """
    if not seeded or group.shuffle_later not in ("reseed", "itemwise"):
        pass_ = 0  # passes that repeat each other repeat their substitutes
    n = group.length
    places = (item + np.arange(1, min(n, TRIES + 1) + 1, dtype=np.int64)) % n
    tried = 0
    for index in permute(n, group.seed, pass_, places, purpose=Purpose.SUBSTITUTE).tolist():
        if index != item and tried < TRIES:
            tried += 1
            yield index, int(item_seeds(group.seed, pass_, np.array([index], np.int64))[0]) if seeded else None
