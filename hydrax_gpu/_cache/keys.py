"""What an entry is found by: an item of the data, and where its values depend on the pass, that too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["ITEM_BITS", "PASS_BITS", "Keys", "pack", "unpack"]

ITEM_BITS = 40
PASS_BITS = 63 - ITEM_BITS

Int64s = npt.NDArray[np.int64]


class Keys(NamedTuple):
    """Keys of `n` entries.

    Attributes:
        items: int64, shape `(n,)`: indices of items in their group, from 0 to 2**40 - 1.
        passes: int64, shape `(n,)`: passes over the group, from 0 to 2**23 - 1; all 0 where the cache has one entry an
            item (`Descriptor.seeded` is "item").
    """

    items: Int64s
    passes: Int64s


def pack(keys: Keys) -> Int64s:
    """Each key as one int64, in the order of (pass, item).

    Raises:
        ValueError: a key is out of range, or the two arrays are not of one length.
    """
    items, passes = np.asarray(keys.items, np.int64), np.asarray(keys.passes, np.int64)
    if items.ndim != 1 or items.shape != passes.shape:
        raise ValueError(
            f"keys need as many items as passes, in one dimension; got shapes {items.shape}, {passes.shape}."
        )
    # all bits of all keys, so that one call each finds the negative and the large
    if int(np.bitwise_or.reduce(items)) >> ITEM_BITS or int(np.bitwise_or.reduce(passes)) >> PASS_BITS:
        raise ValueError(
            f"a cache has items from 0 to 2**{ITEM_BITS} - 1 and passes from 0 to 2**{PASS_BITS} - 1, got items "
            f"{items.min()} to {items.max()} and passes {passes.min()} to {passes.max()}."
        )
    return passes << ITEM_BITS | items


def unpack(packed: Int64s) -> Keys:
    """The keys that `pack` made these from."""
    return Keys(packed & ((1 << ITEM_BITS) - 1), packed >> ITEM_BITS)
