"""The cache's parts that are pure: the plan of reads, the index, keys, journals, claims, additional data."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hydrax_gpu._cache import values
from hydrax_gpu._cache.checksums import EXTRA, digest, seeds
from hydrax_gpu._cache.claims import pack_claim, unpack_claim
from hydrax_gpu._cache.index import ABSENT, Index
from hydrax_gpu._cache.journal import Head, RowFormat, pack_head, unpack_head
from hydrax_gpu._cache.keys import Keys, pack, unpack
from hydrax_gpu._cache.planner import plan
from hydrax_gpu._cache.process import Process
from tests import caches
from tests.caches import same


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=60),
    st.integers(0, 20),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_the_plan_reads_each_record_once(records: list[tuple[int, int]], gap: int, limit: int, random: Any) -> None:
    file = bytes(random.randrange(256) for _ in range(400))
    offsets, sizes = [each[0] for each in records], [each[1] for each in records]
    places = list(range(len(records)))
    random.shuffle(places)
    targets = [0] * len(records)
    end = 0
    for record in places:
        targets[record] = end
        end += sizes[record]
    memory, written = bytearray(end), bytearray(end)
    reads = plan(offsets, sizes, targets, gap=gap, limit=limit)
    seen: list[int] = []
    for read in reads:
        place = read.offset
        wasted = 0
        for target, nbytes in read.pieces:
            assert nbytes > 0
            if target < 0:
                assert nbytes <= gap
                wasted += nbytes
            else:
                memory[target : target + nbytes] = file[place : place + nbytes]
                for byte in range(target, target + nbytes):
                    written[byte] += 1
            place += nbytes
        assert read.nbytes == place - read.offset
        assert read.nbytes <= limit or len(read.records) == 1
        assert read.nbytes == wasted + sum(sizes[record] for record in read.records)
        assert len(read.pieces) <= 1024
        seen += read.records
    assert sorted(seen) == [record for record in range(len(records)) if sizes[record]]
    assert [read.offset for read in reads] == sorted(read.offset for read in reads)
    assert all(count == 1 for count in written)
    for offset, size, target in zip(offsets, sizes, targets, strict=True):
        assert memory[target : target + size] == file[offset : offset + size]


def test_the_plan_joins_what_lies_together() -> None:
    one = plan(range(0, 6400, 100), [100] * 64, range(0, 6400, 100))
    assert len(one) == 1 and one[0].pieces == [(0, 6400)]
    turned = plan(range(6300, -1, -100), [100] * 64, range(0, 6400, 100))
    assert len(turned) == 1 and len(turned[0].pieces) == 64
    assert len(plan(range(0, 3000), [1] * 3000, range(2999, -1, -1))) == 3, "a call has 1024 buffers at most"
    assert len(plan([0, 100 + 16384], [100, 100], [0, 100])) == 1
    assert len(plan([0, 101 + 16384], [100, 100], [0, 100])) == 2


@given(st.lists(st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 99)), max_size=30))))
def test_the_index_is_a_dict(steps: list[tuple[bool, list[tuple[int, int]]]]) -> None:
    index, model = Index(), dict[int, int]()
    every = np.arange(61, dtype=np.int64)
    for remove, pairs in steps:
        some = np.array([key for key, _ in pairs], np.int64)
        if remove:
            index.remove(some)
            for key in some.tolist():
                model.pop(key, None)
        else:
            index.put(some, np.array([value for _, value in pairs], np.int64))
            model.update(pairs)
        assert len(index) == len(model)
        assert index.find(every).tolist() == [model.get(key, ABSENT) for key in range(61)]
    held, found = index.items()
    assert dict(zip(held.tolist(), found.tolist(), strict=True)) == model and held.tolist() == sorted(model)


@given(st.lists(st.tuples(st.integers(0, (1 << 40) - 1), st.integers(0, (1 << 23) - 1)), unique=True))
def test_keys_are_packed_one_to_one(pairs: list[tuple[int, int]]) -> None:
    key = Keys(np.array([item for item, _ in pairs], np.int64), np.array([each for _, each in pairs], np.int64))
    packed = pack(key)
    assert len(set(packed.tolist())) == len(pairs) and (packed >= 0).all()
    back = unpack(packed)
    assert back.items.tolist() == key.items.tolist() and back.passes.tolist() == key.passes.tolist()


def test_every_array_of_every_entry_has_a_seed_of_its_own() -> None:
    packed = pack(Keys(np.tile(np.arange(2000), 3), np.repeat(np.arange(3), 2000)))
    drawn = np.concatenate([seeds(packed, what) for what in (0, 1, 2, EXTRA)])
    assert len(np.unique(drawn)) == len(drawn)
    sums = {digest()(b"", int(seed)) for seed in drawn[:500]}
    assert len(sums) == 500, "even of nothing"


@given(st.integers(1, 8), st.integers(0, 1 << 20), st.data())
def test_no_changed_row_of_a_journal_passes(count: int, first: int, data: st.DataObject) -> None:
    format = RowFormat(caches.ARRAYS)
    rows = data.draw(hnp.arrays(np.uint64, (count, format.width)))
    sealed = format.seal(rows.copy(), first, "00000000000000ff")
    back, good = format.unseal(sealed, first, "00000000000000ff")
    assert good.all() and (back[:, :-1] == rows[:, :-1]).all()
    broken = bytearray(sealed)
    place = data.draw(st.integers(0, len(sealed) - 1))
    broken[place] ^= data.draw(st.integers(1, 255))
    assert np.flatnonzero(~format.unseal(broken, first, "00000000000000ff")[1]).tolist() == [place // format.nbytes]
    assert not format.unseal(sealed, first + 1, "00000000000000ff")[1].any()
    assert not format.unseal(sealed, first, "00000000000000fe")[1].any()
    assert not format.unseal(bytes(len(sealed)), first, "00000000000000ff")[1].any()
    assert format.unseal(sealed[:-1], first, "00000000000000ff")[1].sum() == count - 1


@given(st.data())
def test_no_changed_head_passes(data: st.DataObject) -> None:
    head = Head("0123456789abcdef", Process("place/1", 2, 3), "host ü", caches.descriptor())
    packed = pack_head(head)
    back = unpack_head(packed + b"rows")
    assert isinstance(back, Head) and back.descriptor == head.descriptor and back.size == len(packed)
    assert (back.writer, back.process, back.host) == (head.writer, head.process, head.host)
    cut = data.draw(st.integers(0, len(packed) - 1))
    needed = unpack_head(packed[:cut])
    assert isinstance(needed, int) and cut < needed <= len(packed)
    broken = bytearray(packed)
    broken[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    assert not isinstance(unpack_head(bytes(broken)), Head)


@given(st.lists(st.integers(0, (1 << 63) - 1)), st.integers(0, 1 << 50), st.data())
def test_claims_are_whole_or_none(packed: list[int], number: int, data: st.DataObject) -> None:
    claim = pack_claim(np.array(packed, np.int64), number)
    back = unpack_claim(claim + b"left over from a longer one")
    assert back is not None and back[0].tolist() == packed and back[1] == number
    assert unpack_claim(claim[: data.draw(st.integers(0, len(claim) - 1))]) is None
    broken = bytearray(claim)
    broken[data.draw(st.integers(0, len(claim) - 1))] ^= data.draw(st.integers(1, 255))
    assert unpack_claim(bytes(broken)) is None


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.datetime64_dtypes(),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3))
HALVES = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)).map(
    lambda each: each.view(ml_dtypes.bfloat16)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    ARRAYS, HALVES, ARRAYS.filter(lambda each: each.size).map(lambda each: each.reshape(-1)[0]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(
            st.one_of(st.integers(), st.text(max_size=2), st.tuples(st.integers(), st.none())), inner, max_size=3
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_additional_data_comes_back_as_it_was(content: dict[str, Any]) -> None:
    data, pickled = values.encode(content)
    assert not pickled
    back = values.decode(data, unpickle=False)
    assert same(back, content), (back, content)
