"""The items and seeds of one group's batches, computed some thousand items at a time.

NumPy's price is by the call, not by the item, so that a batch alone would cost what a block of dozens costs. A block is
a window on one pass, or several whole passes of a small group; a batch is looked up in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from hydrax_gpu._plan.groups import GroupPlan
from hydrax_gpu._plan.order import permute
from hydrax_gpu._plan.philox import Purpose
from hydrax_gpu._plan.seeds import EPOCH_LIMIT, I64, batch_seeds, item_seeds

__all__ = ["BLOCK_ITEMS", "GroupBatches"]

BLOCK_ITEMS = 8192
"""Items that a block has, about. Does not influence the order."""


@dataclass(frozen=True, slots=True)
class _Block:
    # Batches [first, first + len(content)) in the order of all passes; row i of the arrays is batch first + i.
    first: int
    content: list[int]  # index of the batch that this one is in pass 0 (its place in the pass, unless "batchwise")
    items: I64  # (batches, batch_size)
    seeds: I64 | None  # (batches, batch_size)
    batch_seeds: list[int]


@final
class GroupBatches:
    """Batches of a group by (pass, batch within the pass). For one thread: the last two blocks are kept."""

    def __init__(self, group: GroupPlan, *, seeded: bool) -> None:
        """With `seeded` False (validation) there are no seeds, and every pass is pass 0."""
        self._group = group
        self._seeded = seeded
        self._count = group.batch_count
        self._one_pass = not seeded or group.shuffle_later == "repeat"
        last = group.length - (self._count - 1) * group.batch_size
        self._last_valid = min(last, group.batch_size)
        per_block = max(1, -(-BLOCK_ITEMS // group.batch_size))
        # Windows of a pass are equal to within one batch; a block of passes never reaches into half of one.
        windows = max(1, self._count // per_block)
        self._window = -(-self._count // windows)
        self._passes = max(1, per_block // self._count) if windows == 1 and not self._one_pass else 1
        self._block: _Block | None = None
        self._older: _Block | None = None

    def get(self, pass_: int, batch: int) -> tuple[int, int, int, list[int], list[int] | None, int]:
        """`(index in pass 0, rows, valid, items, seeds, batch seed)` of a batch; lists have `rows` entries."""
        if self._one_pass:
            pass_ = 0
        at = pass_ * self._count + batch
        block = self._block
        if block is None or not 0 <= at - block.first < len(block.content):
            self._block, self._older = self._older, block
            block = self._block
            if block is None or not 0 <= at - block.first < len(block.content):
                block = self._block = self._compute(pass_, batch)
        row = at - block.first
        content = block.content[row]
        valid = rows = self._group.batch_size
        items = block.items[row]
        seeds = None if block.seeds is None else block.seeds[row]
        if content == self._count - 1 and self._last_valid < rows:
            valid = self._last_valid
            if self._group.remainder == "short":
                rows = valid
                items = items[:rows]
                seeds = None if seeds is None else seeds[:rows]
        return content, rows, valid, items.tolist(), None if seeds is None else seeds.tolist(), block.batch_seeds[row]

    def _compute(self, pass_: int, batch: int) -> _Block:
        if pass_ >= EPOCH_LIMIT:
            raise ValueError(f"a group can be passed over 2**32 times, but the position asked for is in pass {pass_}.")
        # The block that has a batch is aligned, so that it does not matter from where one arrives.
        group, count, size = self._group, self._count, self._group.batch_size
        first_pass = pass_ - pass_ % self._passes
        first_batch = batch - batch % self._window
        batches = np.arange(first_batch, min(first_batch + self._window, count), dtype=np.int64)[None, :]
        passes = np.arange(first_pass, min(first_pass + self._passes, EPOCH_LIMIT), dtype=np.int64)[:, None]
        shape = (len(passes), batches.shape[1])
        identity_first = first_pass == 0  # Row 0 is pass 0, whose order has a rule of its own.

        content = np.broadcast_to(batches, shape)
        if group.shuffle_later == "batchwise" and not self._one_pass:
            content = permute(count, group.seed, passes, batches, purpose=Purpose.BATCH_ORDER)
            if identity_first:
                content[0] = batches

        places = (content * size)[:, :, None] + np.arange(size, dtype=np.int64)
        if self._last_valid < size:
            last = (count - 1) * size
            places[content == count - 1] = last + np.arange(size, dtype=np.int64) % self._last_valid
        places = places.reshape(shape[0], -1)

        renewed = group.shuffle_later in ("reseed", "itemwise") and not self._one_pass
        if group.shuffle_later == "itemwise" and not self._one_pass:
            items = permute(group.length, group.seed, passes, places)
            if identity_first and not group.shuffle_first:
                items[0] = places[0]
        else:
            items = permute(group.length, group.seed, 0, places) if group.shuffle_first else places

        seeds = item_seeds(group.seed, passes if renewed else 0, items) if self._seeded else None
        whole = batch_seeds(group.seed, passes if renewed else 0, content).ravel().tolist() if self._seeded else None
        return _Block(
            first=first_pass * count + first_batch,
            content=content.ravel().tolist(),
            items=items.reshape(-1, size),
            seeds=None if seeds is None else seeds.reshape(-1, size),
            batch_seeds=[0] * content.size if whole is None else whole,
        )
