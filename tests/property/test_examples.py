"""`tf.train.Example`: messages encoded by hand, in every way that the format allows, and in ways that it does not."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu import DataGroup, Dataloader, SourceError
from hydrax_gpu.sources import ExampleSource, Field, MapSource, TFRecordSource, parse_example
from tests.source_files import write_tfrecord

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Plain = dict[str, list[Any]]


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers in two's complement of 64 bits."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, wire: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire) + (varint(len(payload)) if wire == BYTES else b"") + payload


def integers(values: Sequence[int], packed: bool) -> bytes:
    if packed:
        return field(1, BYTES, b"".join(map(varint, values))) if values else b""
    return b"".join(field(1, VARINT, varint(value)) for value in values)


def floats(values: Sequence[float], packed: bool) -> bytes:
    if packed:
        return field(1, BYTES, struct.pack(f"<{len(values)}f", *values)) if values else b""
    return b"".join(field(1, FIXED32, struct.pack("<f", value)) for value in values)


def feature(values: Sequence[Any], kind: str, packed: bool = True) -> bytes:
    if kind == "bytes":
        return field(1, BYTES, b"".join(field(1, BYTES, value) for value in values))
    return field(2, BYTES, floats(values, packed)) if kind == "float" else field(3, BYTES, integers(values, packed))


def example(*entries: tuple[str, bytes]) -> bytes:
    inner = (field(1, BYTES, name.encode()) + field(2, BYTES, value) for name, value in entries)
    return field(1, BYTES, b"".join(field(1, BYTES, entry) for entry in inner))


def plain(features: dict[str, Any]) -> Plain:
    return {name: value if isinstance(value, list) else value.tolist() for name, value in features.items()}


int64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-200, 200)
float32 = st.floats(width=32, allow_nan=False)
lists = st.one_of(
    st.tuples(st.just("int64"), st.lists(int64, max_size=4) | st.just([3, -1, 2**62] * 9)),
    st.tuples(st.just("float"), st.lists(float32, max_size=9)),
    st.tuples(st.just("bytes"), st.lists(st.binary(max_size=9) | st.just(bytes(200)), max_size=3)),
)
unknown = st.sampled_from([b"", field(9, VARINT, b"\x05"), field(7, FIXED64, bytes(8)), field(2**20, BYTES, b"?")])
CASES = settings(max_examples=30, deadline=None)


def test_bytes_as_tensorflow_writes_them() -> None:
    written = bytes.fromhex(
        "0a350a0d0a016212080a060a0261620a000a150a026964120f1a0d0a0b03ffffffffffffffffff010a0d0a0177120812060a040000003f"
    )  # TensorFlow 2.21
    features = parse_example(written)
    assert plain(features) == {"b": [b"ab", b""], "id": [3, -1], "w": [0.5]}
    assert [getattr(value, "dtype", None) for value in features.values()] == [None, np.int64, np.float32]


@given(
    st.dictionaries(st.sampled_from(["", "a", "b/c", "ä"]), st.tuples(lists, st.booleans(), unknown), max_size=3),
    unknown,
)
@CASES
def test_what_was_encoded_comes_out(features: dict[str, Any], more: bytes) -> None:
    entries = [
        (name, feature(values, kind, packed) + extra) for name, ((kind, values), packed, extra) in features.items()
    ]
    assert plain(parse_example(example(*entries) + more)) == {name: each[0][1] for name, each in features.items()}


@given(lists, lists, st.booleans())
@CASES
def test_parts_are_put_together_and_later_ones_win(first: Any, second: Any, packed: bool) -> None:
    (kind, values), (other, more) = first, second
    one, two = feature(values, kind, packed), feature(more, other, not packed)
    together = [*values, *more] if kind == other else more  # of a oneof, the one that was set last
    assert plain(parse_example(example(("a", one + two)))) == {"a": together}
    assert plain(parse_example(example(("a", one)) + example(("a", two)))) == {"a": more}
    assert plain(parse_example(example(("a", one), ("a", b"")))) == {}


def test_bits_beyond_the_sixty_fourth_are_dropped_as_by_protocol_buffers() -> None:
    for count in (1, 9):  # by the loop, and by NumPy
        data = example(("a", field(3, BYTES, field(1, BYTES, (b"\xff" * 9 + b"\x7f") * count))))
        assert plain(parse_example(data)) == {"a": [-1] * count}


@given(st.lists(int64, min_size=2, max_size=30), st.data())
@CASES
def test_a_message_that_breaks_off_is_an_error(values: list[int], data: st.DataObject) -> None:
    whole = example(("a", feature(values, "int64")), ("b", feature([b"x"], "bytes")))
    end = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(SourceError, match=r"^tf.train.Example: "):
        parse_example(whole[:end])


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3), lists)
@settings(max_examples=60, deadline=None)
def test_damage_is_our_error_or_other_values_and_nothing_else(flips: list[tuple[int, int]], each: Any) -> None:
    whole = bytearray(example(("name", feature(each[1], each[0])), ("b", feature([b"xyz"], "bytes"))))
    for at, value in flips:
        whole[at % len(whole)] = value
    try:
        features = parse_example(bytes(whole))
    except SourceError:
        return
    for value in features.values():
        assert isinstance(value, list) or value.dtype in (np.int64, np.float32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a", "ends within a number"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x02\x00", "there is no field 0"),
        (b"\x0b", "wire type 3"),
        (field(1, VARINT, b"\1"), "field 1 is a number, wanted a message"),
        (field(2, BYTES, b""), "SequenceExample"),
        (b"\x0a\x05abc", "field 1 is longer than what it is in"),
        (field(1, BYTES, field(1, BYTES, field(1, BYTES, b"\xff"))), "not UTF-8"),
        (field(1, BYTES, field(1, BYTES, field(3, BYTES, b""))), "wanted a key and a value"),
        (example(("a", field(2, BYTES, field(1, BYTES, bytes(5))))), "'a': its floats do not take four bytes each"),
        (example(("a", field(2, BYTES, field(1, VARINT, b"\0")))), "'a': its floats do not take four bytes each"),
        (example(("a", field(3, BYTES, field(1, FIXED32, bytes(4))))), "'a': its integers are no varints"),
        (example(("a", field(3, BYTES, field(1, BYTES, b"\1" * 20 + b"\x80")))), "'a': a number ends with the field"),
        (
            example(("a", field(3, BYTES, field(1, BYTES, b"\1" * 8 + b"\xff" * 10 + b"\1")))),
            "'a': a number of more than ten",
        ),
        (example(("a", field(1, BYTES, field(1, FIXED32, bytes(4))))), "'a': field 1 is a number"),
    ],
)
def test_what_is_no_example_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_example(data)


# The source.

ARRAYS = {"image": ((2, 3), np.float32, np.float32), "label": ((), np.int32, np.int32)}


def record(number: int) -> bytes:
    values = feature([number + i / 8 for i in range(6)], "float")
    entries = [
        ("image/raw", values),
        ("label", feature([number], "int64")),
        ("name", feature([b"n%d" % number], "bytes")),
    ]
    if number == 4:
        del entries[1]
    return b"\x0b" if number == 5 else example(*entries)


def test_features_reach_the_batch_by_their_names_and_damaged_ones_are_bad_items(tmp_path: Path) -> None:
    fields = {"image": Field("image/raw", (2, 3)), "label": "label"}
    parts = [
        write_tfrecord(tmp_path / f"{part}", [record(i) for i in numbers])
        for part, numbers in enumerate([range(4), range(4, 8)])
    ]
    training, validation = (ExampleSource(TFRecordSource(part), fields) for part in parts)
    loader = Dataloader(
        training.loader(others=[validation]), DataGroup(2, training, loader_arrays=ARRAYS, shuffle_first=True),
        validation=("epoch", 1, DataGroup(2, validation, loader_arrays=ARRAYS)),
        executor="inline", end_at=("epoch", 1),
    )  # fmt: skip
    with loader:
        batches = [(list(b.indices), b.arrays["label"].tolist(), b.arrays["image"][:, 1, 2].tolist()) for b in loader]
    assert sorted(n for _, labels, _ in batches[:2] for n in labels) == [0, 1, 2, 3] and batches[2][1] == [6, 7]
    assert all(last == [label + 5 / 8 for label in labels] for _, labels, last in batches)
    missing, damaged = loader.report().bad
    assert "record at" in missing.error and "it has no 'label' for 'label', only 'image/raw', 'name'" in missing.error
    assert "wire type 3" in damaged.error


def test_a_reader_goes_to_another_process(tmp_path: Path) -> None:
    source = ExampleSource(TFRecordSource(write_tfrecord(tmp_path / "a", [record(1), record(2)])), {"name": "name"})
    reader, items = pickle.loads(pickle.dumps((source.reader, [source[1], source[-2]])))
    assert reader.read_rows(items) == [{"name": b"n2"}, {"name": b"n1"}]
    assert plain(ExampleSource(source._records).load(0))["label"] == [1]
    assert len(source[1:]) == 1 and source[1:].load(0) == {"name": b"n2"}


def test_shapes_are_kept_to() -> None:
    data = [example(("t", feature([b"a", b"b", b"c", b"d"], "bytes")), ("n", feature([1, 2], "int64")))]
    records: Any = MapSource(data)
    source = ExampleSource(records, {"t": Field("t", (2, 2)), "n": Field("n", None)})
    assert plain(source.load(0)) == {"t": [[b"a", b"b"], [b"c", b"d"]], "n": [1, 2]}
    with pytest.raises(SourceError, match=r"'n' has 2 values, wanted 1 for the shape \(\) of 'x'; Field\('n', None\)"):
        ExampleSource(records, {"x": "n"}).load(0)
    for wrong in (3, Field("n", (-1,)), Field("n", 2)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="wanted a key, or Field"):
            ExampleSource(records, {"x": wrong})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="wanted a source"):
        ExampleSource(data)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="declare the arrays yourself"):
        source.arrays()
    with pytest.raises(ValueError, match="read in different ways"):
        source.loader(others=[ExampleSource(records, {"t": "t"})])
