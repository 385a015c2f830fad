"""Frames come out whole, whatever pieces they arrive in."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._exec.framing import FrameReader, encode, frame

messages = st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=50), st.tuples(st.integers(), st.none())))


@given(messages, st.data())
def test_any_cut_of_the_stream_gives_the_same_messages(sent: list[Any], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in sent)
    reader, got, begin = FrameReader(), list[Any](), 0
    while begin < len(stream):
        size = data.draw(st.integers(1, len(stream) - begin))
        got.extend(reader.feed(stream[begin : begin + size]))
        begin += size
    assert got == sent


def test_a_message_that_is_cut_off_is_never_seen() -> None:
    reader = FrameReader()
    stream = encode("whole") + encode("cut off by a crash")[:-1]
    assert list(reader.feed(stream)) == ["whole"]
    assert list(reader.feed(b"")) == []


def test_a_large_message_arrives_in_many_pieces() -> None:
    body = bytes(range(256)) * 40_000
    stream = encode(body)
    reader, got = FrameReader(), list[Any]()
    for begin in range(0, len(stream), 65_536):
        got.extend(reader.feed(stream[begin : begin + 65_536]))
    assert got == [body]


def test_the_length_is_little_endian_and_excludes_itself() -> None:
    assert frame(b"abc") == b"\x03\x00\x00\x00abc"
