"""Where arrays lie in device memory, for any declaration; and which bytes are copied there."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._place.conversions import exact
from hydrax_gpu._place.regions import DeviceLayout, coalesce
from hydrax_gpu._spec import Layout

DTYPES = ["bool", "uint8", "int16", "int32", "float16", "float32", "bfloat16", "complex64", "float8_e5m2"]

ranges = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)).map(lambda r: (r[0], r[0] + r[1])), max_size=12)
declarations = st.lists(
    st.tuples(st.lists(st.integers(1, 9), max_size=3).map(tuple), st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    min_size=1,
    max_size=6,
)


@given(ranges, st.integers(0, 80))
def test_joined_ranges_cover_what_was_given_and_no_gap_that_is_wider(given_ranges: Any, gap: int) -> None:
    joined = coalesce(given_ranges, gap=gap)
    wanted = {byte for begin, end in given_ranges for byte in range(begin, end)}
    covered = [byte for begin, end in joined for byte in range(begin, end)]
    assert len(covered) == len(set(covered)) and set(covered) >= wanted
    assert all(later[0] - earlier[1] > gap for earlier, later in itertools.pairwise(joined))
    extra = sorted(set(covered) - wanted)
    runs = 0
    for index, byte in enumerate(extra):
        runs = runs + 1 if index and extra[index - 1] == byte - 1 else 1
        assert runs <= gap, "a gap that is wider than that is copied in vain"
    if wanted:
        assert covered[0] == min(wanted) and covered[-1] == max(wanted)


@given(declarations, st.integers(1, 7), st.data())
def test_arrays_do_not_overlap_and_all_that_is_read_is_copied(specs: Any, rows: int, data: st.DataObject) -> None:
    layout = Layout.build(rows, {f"a{i}": spec for i, spec in enumerate(specs)})
    dtypes = {array.name: array.jax_dtype for array in layout.arrays}
    plan = DeviceLayout.build(layout, dtypes, exact)
    assert [region.name for region in plan.regions] == [array.name for array in layout.arrays]
    used = np.zeros(plan.nbytes, np.int8)
    for region, array in zip(plan.regions, layout.arrays, strict=True):
        assert region.source == array.offset and region.offset % 256 == 0
        used[region.source : region.source + array.nbytes] += 1
        assert region.how == ("as it is" if array.numpy_dtype == array.jax_dtype else region.how)
        assert (region.how == "kernel") == (region.offset != region.source) == exact(array.numpy_dtype, array.jax_dtype)
        assert region.dtype == (array.numpy_dtype if region.how == "xla" else array.jax_dtype)
        if region.how == "kernel":
            used[region.offset : region.offset + array.count * region.dtype.itemsize] += 1
    assert used.max() == 1
    some = data.draw(st.integers(1, rows))
    copied = np.zeros(plan.nbytes, bool)
    for offset, nbytes in plan.copies(some):
        assert offset + nbytes <= layout.nbytes
        copied[offset : offset + nbytes] = True
    for array in layout.arrays:
        assert copied[array.offset : array.offset + some * array.row_nbytes].all()
    assert len(plan.copies(rows)) == 1 or layout.nbytes > 64 * 1024
    memory: Any = bytearray(plan.nbytes)
    for name, view in plan.views(memory, some).items():
        region = next(region for region in plan.regions if region.name == name)
        assert view.shape == (some, *region.item_shape) and view.dtype == region.dtype
    for work in plan.converts(1 << 20, some):
        region = next(region for region in plan.regions if work.source == (1 << 20) + region.source)
        assert work.destination == (1 << 20) + region.offset and work.count == some * region.item_size
