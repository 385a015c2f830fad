"""Batches from a cache: the same as without one, and without the loader function."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import CacheMismatch, DataGroup, Dataloader, PadRagged, TooManyBadItems, UnpackBits
from hydrax_gpu._cache import Store
from hydrax_gpu._engine import caches as engine_caches
from tests import loaders
from tests.cached_runs import CACHED, LOADED, damage, direct, encode, encoded, run

WAYS = [("inline", 1), ("thread", 1), ("thread", 4), ("process", 2)]


@pytest.mark.parametrize("executor, workers", WAYS)
def test_a_second_run_has_the_same_batches_and_loads_nothing(executor: Any, workers: int, tmp_path: Path) -> None:
    options = {"executor": executor, "loader_count": workers}
    uncached, _, _ = run(loaders.draw, encoded(None, shuffle_first=True, shuffle_later="batchwise"))
    first, was_uncached, loader = run(loaders.draw, encoded(tmp_path / "c", shuffle_first=True), **options)
    assert first == uncached and all(was_uncached)
    assert loader.report().caches[0].written == 22
    second, was_uncached, loader = run(loaders.Forbidden(), encoded(tmp_path / "c", shuffle_first=True), **options)
    assert second == uncached, "order, arrays and additional data, to the bit"
    assert not any(was_uncached)
    (info,) = loader.report().caches
    assert (info.hits, info.misses, info.bad, info.written, info.troubles) == (22, 0, 0, 0, ())
    assert info.read_path == "posix" and info.read_path_reason


@pytest.mark.parametrize("executor, workers", WAYS)
def test_what_the_loader_function_fills_is_loaded_once(executor: Any, workers: int, tmp_path: Path) -> None:
    options = {"executor": executor, "loader_count": workers, "end_at": ("epoch", 3)}
    uncached, _, _ = run(loaders.draw, direct(None, shuffle_later="batchwise"), **options, do=lambda batch: None)
    for load in loaders.CountsCalls(str(tmp_path / "calls")), loaders.CountsRows(str(tmp_path / "rows")):
        where = tmp_path / type(load).__name__
        cached, was_uncached, loader = run(load, direct(where), do=lambda batch: None, **options)
        assert cached == uncached and not any(was_uncached)
        (info,) = loader.report().caches
        assert (info.kind, info.written, info.hits) == ("direct", 22, 66 - load.calls)
        # Another worker may begin with a batch of the second epoch while this one is at its items in the first.
        assert load.calls == 22 if workers == 1 else 22 <= load.calls <= 22 + 4 * 3, "the later epochs load nothing"
        again, _, _ = run(loaders.Forbidden(), direct(where, cache_readonly=True), do=lambda batch: None, **options)
        assert again == uncached


def test_another_batch_size_and_order_find_the_same_items(tmp_path: Path) -> None:
    run(loaders.draw, encoded(tmp_path / "c", 4, remainder="pad"))
    by_item: dict[int, Any] = {}

    def collect(batch: Any) -> None:
        for row, item in enumerate(batch.indices):
            by_item[item] = (
                np.asarray(batch.arrays["z"])[row].tobytes(),
                float(batch.arrays["w"][row]),
                batch.get_additional("text", row),
            )

    run(loaders.Forbidden(), encoded(tmp_path / "c", 4), collect)
    small = dict(by_item)
    by_item.clear()
    _, _, loader = run(loaders.Forbidden(), encoded(tmp_path / "c", 7, remainder="pad"), collect)
    assert by_item == small and len(small) == 22
    assert loader.report().caches[0].hits == 22, "rows that pad a batch are not read"


def test_padding_is_written_once(tmp_path: Path) -> None:
    _, _, loader = run(loaders.draw, encoded(tmp_path / "c", 8, remainder="pad"))
    (info,) = loader.report().caches
    assert (info.written, info.present) == (22, 0)


def test_seeds_that_change_have_entries_of_their_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"end_at": ("epoch", 2)}
    group = {"shuffle_later": "itemwise"}
    load = loaders.CountsCalls(str(tmp_path / "calls"))
    first, _, _ = run(load, direct(tmp_path / "c", **group), lambda batch: None, **options)
    assert load.calls == 2 * 22
    assert first == run(loaders.draw, direct(None, **group), lambda batch: None, **options)[0]
    assert first == run(loaders.Forbidden(), direct(tmp_path / "c", **group), lambda batch: None, **options)[0]


def test_only_what_is_missing_is_loaded_and_the_rows_of_a_batch_mix(tmp_path: Path) -> None:
    plain, _, _ = run(loaders.draw, direct(None, 6), lambda batch: None)
    run(loaders.draw, direct(tmp_path / "c", 6), lambda batch: None, end_at=("batch", 2))
    for record in (1, 2, 7):
        damage(tmp_path / "c", record, 12)
    for kind in loaders.CountsCalls, loaders.CountsRows:
        load = kind(str(tmp_path / kind.__name__))
        again, _, loader = run(load, direct(tmp_path / "c", 6, cache_readonly=True), lambda batch: None)
        (info,) = loader.report().caches
        assert again == plain
        assert (info.hits, info.misses, info.bad) == (9, 10, 3)
        assert load.calls == 13
    load = loaders.CountsCalls(str(tmp_path / "mends"))
    run(load, direct(tmp_path / "c", 6), lambda batch: None)
    again, _, _ = run(loaders.Forbidden(), direct(tmp_path / "c", 6), lambda batch: None)
    assert again == plain, "what was damaged was written anew"


def test_a_damaged_record_makes_the_whole_batch_be_loaded(tmp_path: Path) -> None:
    first, _, _ = run(loaders.draw, encoded(tmp_path / "c"))
    damage(tmp_path / "c", 9, 10)  # item 9, in batch 2
    second, was_uncached, loader = run(loaders.draw, encoded(tmp_path / "c"))
    assert second == first
    assert was_uncached == [False, False, True, False, False, False]
    (info,) = loader.report().caches
    assert (info.bad, info.written) == (1, 1), "the three others of its batch are there"
    assert not any(run(loaders.Forbidden(), encoded(tmp_path / "c"))[1]), "mended by Batch.cache"


def test_a_cache_alone_is_enough(tmp_path: Path) -> None:
    first, _, _ = run(loaders.draw, encoded(tmp_path / "c"))
    only = encoded(tmp_path / "c", loader_arrays=None)
    assert only.loader_layouts == {} and only.loader_size is None and only.cache_readonly
    for options in {"executor": "process", "loader_count": 0}, {"executor": "inline"}:
        second, was_uncached, _ = run(loaders.Forbidden(), only, **options)
        assert second == first and not any(was_uncached)
    with pytest.raises(ValueError, match="loader_count: got 0"):
        Dataloader(loaders.draw, encoded(tmp_path / "c"), loader_count=0)


def test_batches_that_are_in_no_cache_are_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(loaders.draw, encoded(tmp_path / "c"), end_at=("batch", 4))
    damage(tmp_path / "c", 5, 10)
    with caplog.at_level(logging.WARNING, "hydrax_gpu"):
        contents, _, loader = run(loaders.draw, encoded(tmp_path / "c", loader_arrays=None), end_at=("epoch", 2))
    assert sorted(each[0][0] for each in contents) == [0, 0, 8, 8, 12, 12]
    report = loader.report()
    assert report.dropped_batches == report.caches[0].dropped_batches == 6
    assert len([r for r in caplog.records if "is not complete in its cache" in r.message]) == 1
    assert "6 batches left out because they are not in it" in str(report)
    run(loaders.draw, encoded(tmp_path / "empty"), end_at=("batch", 0))
    with pytest.raises(TooManyBadItems, match="come from its cache alone"):
        run(loaders.draw, encoded(tmp_path / "empty", loader_arrays=None), end_at=("epoch", 2))


def test_substitutes_are_kept_under_their_own_names(tmp_path: Path) -> None:
    def broken(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
        if item == 5:
            raise ValueError("no such picture")
        return loaders.draw(item, arrays, seed)

    first, _, loader = run(broken, direct(tmp_path / "c"), lambda batch: None, on_error="replace")
    assert loader.report().replaced_items == 1
    items = {item for each in first for item in each[0]}
    assert items == set(range(22)) - {5}
    whole, _, _ = run(loaders.draw, direct(tmp_path / "c"), lambda batch: None)
    assert whole == run(loaders.draw, direct(None), lambda batch: None)[0], "nobody's values are under another's name"

    run(broken, encoded(tmp_path / "e"), on_error="replace")
    plain, _, _ = run(loaders.draw, encoded(None))
    assert run(loaders.draw, encoded(tmp_path / "e"))[0] == plain


def test_what_is_decoded_is_cached_before_that(tmp_path: Path) -> None:
    from hydrax_gpu import ArraySpec

    arrays = {
        "bits": ArraySpec((2,), np.uint8, np.float32, UnpackBits(1)),
        "values": ArraySpec((40,), np.float32, np.float32, PadRagged(splits="splits", length=6)),
        "splits": ((3,), np.int32, np.int32),
    }

    def group(location: Path | None) -> DataGroup[Any]:
        return DataGroup(4, range(12), loader_arrays=arrays, cache_location=location, shuffle_later="batchwise")

    plain, _, _ = run(loaders.fill_ragged, group(None), lambda batch: None)
    for load in loaders.fill_ragged, loaders.Forbidden():
        assert run(load, group(tmp_path / "c"), lambda batch: None)[0] == plain
    stored = sum(path.stat().st_size for path in (tmp_path / "c").glob("*.bin"))
    assert stored == 12 * (2 + 160 + 12)


def test_validation_is_cached_apart(tmp_path: Path) -> None:
    def both(load: Any, train: Path, validate: Path) -> list[Any]:
        validation = ("epoch", 1, direct(validate, shuffle_first=True))
        return run(load, direct(train), lambda batch: None, validation=validation, end_at=("epoch", 2))[0]

    first = both(loaders.draw, tmp_path / "t", tmp_path / "v")
    assert both(loaders.Forbidden(), tmp_path / "t", tmp_path / "v") == first
    with pytest.raises(CacheMismatch) as caught:
        both(loaders.draw, tmp_path / "t", tmp_path / "t")
    assert caught.value.field == "shuffle_later"


@pytest.mark.parametrize(
    "field, change",
    [
        ("cache_version", {"cache_version": "2"}),
        ("seed", {"seed": 1}),
        ("shuffle_first", {"shuffle_first": True}),
        ("length", {"data": range(23)}),
        ("fingerprint", {"data": range(1, 23)}),
        ("seeded", {"shuffle_later": "itemwise"}),
        ("arrays[0].nbytes", {"cache_arrays": {**CACHED, "z": ((6,), np.float32, np.float32)}}),
    ],
)
def test_a_cache_of_something_else_is_refused(field: str, change: dict[str, Any], tmp_path: Path) -> None:
    run(loaders.draw, encoded(tmp_path / "c"), end_at=("batch", 1))
    with pytest.raises(CacheMismatch) as caught:
        run(loaders.draw, encoded(tmp_path / "c", **change))
    assert caught.value.field == field
    renamed = {"a": CACHED["z"], "b": CACHED["w"]}
    _, uncached, _ = run(loaders.draw, encoded(tmp_path / "c", cache_arrays=renamed), lambda batch: None)
    assert not uncached[0], "names may change"


def test_a_run_is_resumed_in_the_middle_of_what_is_cached(tmp_path: Path) -> None:
    whole, _, _ = run(loaders.draw, encoded(tmp_path / "c"), end_at=("epoch", 2))
    with Dataloader(loaders.Forbidden(), encoded(tmp_path / "c"), executor="inline", end_at=("epoch", 2)) as loader:
        for _ in range(7):
            next(loader)
        state = loader.state()
    rest, _, _ = run(loaders.draw, encoded(None, shuffle_later="batchwise"), start_at=state, end_at=("epoch", 2))
    assert rest == whole[7:]
    rest, _, _ = run(loaders.Forbidden(), encoded(tmp_path / "c"), start_at=state, end_at=("epoch", 2))
    assert rest == whole[7:]


def test_placement_func_is_told_the_layout_of_cached_batches(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def place(arrays: Any, layouts: Any, additional: Any, group: DataGroup[Any]) -> dict[str, Any]:
        import jax.numpy as jnp

        seen.append([*layouts])
        assert [*arrays] == [*layouts]
        assert (layouts is group.cache_layouts) == ("item" in additional and "text" in additional)
        return {name: jnp.array(array) for name, array in arrays.items()}

    first, _, _ = run(loaders.draw, encoded(tmp_path / "c"), placement_func=place, end_at=("batch", 2))
    second, _, _ = run(loaders.draw, encoded(tmp_path / "c"), placement_func=place, end_at=("batch", 2))
    assert first == second and seen == [[*LOADED]] * 2 + [[*CACHED]] * 2


def test_a_batch_whose_items_are_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held until the engine has asked for a batch that it has."""
    asked = threading.Event()
    write, form = Store.write, engine_caches.Caches.form
    found: list[Any] = []

    def held(self: Store, *arguments: Any) -> int:
        assert asked.wait(60)
        return write(self, *arguments)

    def watched(self: Any, plan: Any) -> Any:
        found.append(form(self, plan))
        if found[-1] is engine_caches.Form.WAIT:
            asked.set()
        return found[-1]

    monkeypatch.setattr(Store, "write", held)
    monkeypatch.setattr(engine_caches.Caches, "form", watched)
    load = loaders.CountsCalls(str(tmp_path / "calls"))
    group = encoded(tmp_path / "c", 4, range(16), shuffle_later="repeat")
    contents, _, _ = run(load, group, encode, executor="thread", depth=1, end_at=("epoch", 2), delivery="copy")
    assert engine_caches.Form.WAIT in found
    assert contents[:4] == contents[4:] and load.calls == 16
