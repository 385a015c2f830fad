"""Additional data on disk: what is pickled, and that nothing is unpickled which somebody else may have written."""

from __future__ import annotations

import collections
import datetime
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hydrax_gpu._cache import Keys, Store, values
from hydrax_gpu.errors import UnsafeCache
from tests import caches
from tests.caches import keys, spec

Point = collections.namedtuple("Point", "x y")


class Curse:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def put(location: Path, *contents: dict[str, Any] | None) -> Keys:
    key = keys(range(len(contents)))
    store = Store.open(spec(location))
    assert store.write(key, caches.content(key)[0], contents) == len(contents)
    store.close()
    return key


def get(location: Path, key: Keys) -> list[dict[str, Any] | None]:
    store = Store.open(spec(location, readonly=True))
    result = store.read(key, {name: np.zeros_like(array) for name, array in caches.content(key)[0].items()})
    store.close()
    assert result.bad == []
    return result.additional


def test_other_values_are_pickled_and_come_back(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    odd: dict[str, Any] = {
        "point": Point(1, 2),
        "day": datetime.date(2026, 1, 2),
        "set": {1, 2},
        "fields": np.zeros(2, [("a", "i4"), ("b", "f8")]),
        "objects": np.array(["a", None], object),
        "bytearray": bytearray(b"ab"),
        "ordered": collections.OrderedDict(a=1),
        "deep": deep,
        "error": ValueError,
    }
    back = get(tmp_path, put(tmp_path, odd, {"plain": 1}, {}, None))
    assert back[1:] == [{"plain": 1}, {}, None]
    first = back[0]
    assert first is not None and list(first) == list(odd)
    for name, value in odd.items():
        assert type(first[name]) is type(value), name
        assert np.all(first[name] == value), name
        assert values.encode({name: value})[1], f"{name} is said to be pickled"


def test_arrays_may_be_written_to(tmp_path: Path) -> None:
    back = get(tmp_path, put(tmp_path, {"a": np.arange(3), "b": np.zeros((0, 2)), "c": np.float32(2)}))[0]
    assert back is not None
    back["a"] += 1
    assert back["a"].tolist() == [1, 2, 3] and back["b"].shape == (0, 2) and type(back["c"]) is np.float32


def test_the_curse_works_where_it_is_trusted(tmp_path: Path) -> None:
    """So that the tests below could fail."""
    mark = tmp_path / "cursed"
    get(tmp_path / "cache", put(tmp_path / "cache", {"curse": Curse(mark)}))
    assert mark.exists()


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_nothing_is_unpickled_from_a_file_that_others_may_write(tmp_path: Path, mode: int) -> None:
    mark = tmp_path / "cursed"
    location = tmp_path / "cache"
    key = put(location, {"plain": 1}, {"curse": Curse(mark)})
    next(location.glob("*.extra.bin")).chmod(mode)
    with pytest.raises(UnsafeCache, match=rf"may be written by others \(mode {mode:o}\).*chmod go-w .*no pickle"):
        get(location, key)
    # entries without a pickle are read all the same
    assert get(location, keys([0])) == [{"plain": 1}]
    assert not mark.exists()


def test_nothing_is_unpickled_from_a_directory_that_others_may_write(tmp_path: Path) -> None:
    mark = tmp_path / "cursed"
    location = tmp_path / "cache"
    key = put(location, {"curse": Curse(mark)})
    location.chmod(0o777)
    with pytest.raises(UnsafeCache, match=r"cache may be written by others \(mode 777\)"):
        get(location, key)
    with pytest.raises(UnsafeCache):
        put(tmp_path / "cache", None, {"curse": Curse(mark)})
    assert not mark.exists()


def test_nothing_is_unpickled_from_somebody_elses_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "cursed"
    location = tmp_path / "cache"
    key = put(location, {"curse": Curse(mark)})
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(UnsafeCache, match=rf"belongs to user {me} and not to you \({me + 1}\)"):
            get(location, key)
    if me == 0:
        os.chown(next(location.glob("*.extra.bin")), 12345, 12345)
        with pytest.raises(UnsafeCache, match="belongs to user 12345"):
            get(location, key)
    assert not mark.exists()


def test_files_are_made_for_the_user_alone_to_write(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        put(tmp_path, {"a": 1})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.*.bin")} == {0o644}


def test_a_pickle_that_is_not_said_to_be_one_is_not_opened(tmp_path: Path) -> None:
    data, pickled = values.encode({"curse": Curse(tmp_path / "cursed")})
    assert pickled
    with pytest.raises(ValueError, match="pickled values that must not be opened"):
        values.decode(data, unpickle=False)
    assert not (tmp_path / "cursed").exists()


@pytest.mark.parametrize(
    "content",
    [[1], msgspec.msgpack.Ext(3, msgspec.msgpack.encode(["|O", [1], b"12345678"])), msgspec.msgpack.Ext(99, b"")],
)
def test_what_no_release_writes_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="additional data"):
        values.decode(msgspec.msgpack.encode(content), unpickle=True)
    if not isinstance(content, list):
        with pytest.raises(ValueError, match="additional data"):
            values.decode(msgspec.msgpack.encode({"a": content}), unpickle=True)


def test_keys_must_be_str() -> None:
    with pytest.raises(TypeError, match="must be str, got 1"):
        values.encode({1: 2})  # pyright: ignore[reportArgumentType]
