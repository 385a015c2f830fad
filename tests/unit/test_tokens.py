"""Documents of tokens in batches: packed and resumed, padded with masks; and what does not go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader, SourceChanged, sources
from hydrax_gpu.sources import PackedSource, TokenSource, write_tokens

DOCUMENTS = [np.random.default_rng(i).integers(1, 60_000, n) for i, n in enumerate((3, 0, 25, 7, 11, 1, 9, 14, 2, 30))]


def written(folder: Path) -> TokenSource:
    return write_tokens(folder / "tokens.npy", DOCUMENTS)


def run(packed: PackedSource, **options: Any) -> tuple[list[Any], Any]:
    group = DataGroup(
        2, packed, loader_arrays=packed.arrays("tokens", "segment_ids"), seed=5, shuffle_first=True, remainder="short"
    )
    options = {"executor": "inline", "on_error": "raise", "end_at": ("epoch", 3), **options}
    batches: list[Any] = []
    with Dataloader(packed.loader(), group, **options) as loader:
        for batch in loader:
            batches.append([batch.arrays[name].tolist() for name in ("tokens", "segment_ids")])
            del batch
            if len(batches) == options.get("stop"):
                break
        return batches, loader.state()


def test_packed_rows_come_by_any_executor_and_a_run_goes_on_exactly(tmp_path: Path) -> None:
    documents = written(tmp_path)

    def packed() -> PackedSource:
        return PackedSource(documents, 16, seed=3)

    whole, _ = run(packed())
    assert len(whole) == 3 * -(-len(packed()) // 2)
    assert run(packed(), executor="process", loader_count=2)[0] == whole
    group = DataGroup(
        2, packed(), loader_arrays=packed().arrays("tokens", "segment_ids"), seed=5, shuffle_first=True,
        remainder="short",
    )  # fmt: skip
    with Dataloader(packed().loader(), group, executor="inline", end_at=("epoch", 3)) as loader:
        for _ in range(4):
            next(loader)
        state = loader.state()
    assert run(packed(), start_at=state)[0] == whole[4:]
    in_epoch = [token for tokens, _ in whole[: len(whole) // 3] for row in tokens for token in row if token]
    assert sorted(in_epoch) == sorted(np.concatenate(DOCUMENTS).tolist())


def test_padded_batches_have_masks_and_every_token(tmp_path: Path) -> None:
    documents = written(tmp_path)
    group = DataGroup(5, documents, loader_arrays=documents.arrays(mask="there"))
    with Dataloader(documents.loader(), group, executor="inline", on_error="raise", end_at=("epoch", 1)) as loader:
        for batch in loader:
            tokens, mask = np.asarray(batch.arrays["tokens"]), np.asarray(batch.arrays["there"])
            assert tokens.shape == mask.shape == (5, 30)
            for row, index in enumerate(batch.indices):
                assert tokens[row][mask[row]].tolist() == DOCUMENTS[index].tolist()
                assert not tokens[row][~mask[row]].any()
            del batch


def test_documents_that_are_too_long_for_a_padded_row(tmp_path: Path) -> None:
    for truncate, lengths in ((False, [3, 0]), (True, [3, 0, 5, 5])):
        source = write_tokens(tmp_path / "tokens.npy", DOCUMENTS[:4])
        source = TokenSource(tmp_path / "tokens.npy", tmp_path / "tokens.offsets.npy", truncate=truncate)
        group = DataGroup(2, source, loader_arrays=source.arrays(5))
        with Dataloader(source.loader(), group, executor="inline", end_at=("epoch", 1)) as loader:
            assert [n for batch in loader for n in batch.arrays["mask"].sum(axis=1).tolist()] == lengths
        report = loader.report()
        if truncate:
            assert report.fallbacks == {"document cut to the length of a row (truncate=True)": 2}
        else:
            assert "got a document of 25 tokens, wanted at most 5" in report.bad[0].error


def test_documents_in_several_files(tmp_path: Path) -> None:
    for number, part in enumerate((DOCUMENTS[:3], DOCUMENTS[3:])):
        write_tokens(tmp_path / f"{number}.npy", part, np.int32)
    source = TokenSource(
        [tmp_path / "0.npy", tmp_path / "1.npy"], [tmp_path / "0.offsets.npy", tmp_path / "1.offsets.npy"]
    )
    assert [source.load(i).tolist() for i in range(len(source))] == [each.tolist() for each in DOCUMENTS]
    assert source.lengths.tolist() == list(map(len, DOCUMENTS)) and source.dtype == np.int32
    assert PackedSource(source, 8).report.tokens == sum(map(len, DOCUMENTS))


def test_what_is_lost_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = written(tmp_path)
    caplog.set_level(logging.INFO, "hydrax_gpu")
    assert str(PackedSource(documents, 16).report).endswith("2 documents in several pieces; 1 documents are empty")
    cut = PackedSource(documents, 16, long="truncate").report
    assert (cut.truncated_documents, cut.truncated_tokens) == (2, 9 + 14)
    dropped = PackedSource(documents, 16, long="drop").report
    assert (dropped.dropped_documents, dropped.dropped_tokens) == (2, 25 + 30)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "WARNING", "WARNING"]
    assert "23 tokens of 2 documents cut off" in caplog.text and "2 documents with 55 tokens left out" in caplog.text


def test_arguments_that_are_not_valid_say_so(tmp_path: Path) -> None:
    documents = written(tmp_path)
    for options, message in (
        ({"length": 0}, "length: got 0, wanted at least 1"),
        ({"length": 8, "open_rows": 0}, "open_rows: got 0"),
        ({"length": 8, "epochs": 2}, "without a seed"),
        ({"length": 8, "long": "cut"}, "long: got 'cut', wanted one of 'split'"),
    ):
        with pytest.raises(ValueError, match=message):
            PackedSource(documents, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got no row out of"):
        PackedSource(documents[4:5], 4, long="drop")
    with pytest.raises(TypeError, match="wanted a TokenSource or a slice of one"):
        PackedSource(sources.MapSource([1]), 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wanted some of tokens, segment_ids"):
        PackedSource(documents, 8).arrays("token")
    outcomes = PackedSource(documents, 8).reader.fill_rows([PackedSource(documents, 8)[0]], [{"tokens": np.empty(9)}])
    assert "of shape (8,)" in str(outcomes[0])


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "t.bin")
    np.save(tmp_path / "real.npy", np.zeros(3))
    np.save(tmp_path / "table.npy", np.zeros((3, 2), int))
    good = np.array([0, 4, 10])
    assert TokenSource(tmp_path / "t.bin", good, dtype=np.uint16).load(1).tolist() == [4, 5, 6, 7, 8, 9]
    for tokens, offsets, dtype, message in (
        ("t.bin", good, None, "does not say of what dtype"),
        ("t.bin", good, np.dtype("u8"), "wanted a multiple of the 8"),
        ("real.npy", good, None, "wanted integers"),
        ("table.npy", good, None, r"wanted \(n,\)"),
        ("t.bin", np.array([0, 4, 9]), "u2", "from 0 to 9, wanted ascending ones from 0 to the number of tokens, 10"),
        ("t.bin", np.array([0, 7, 4, 10]), "u2", "wanted ascending"),
        ("t.bin", np.array([0.0, 10]), "u2", r"wanted \(n \+ 1,\) integers"),
        ("t.bin", np.array([], int), "u2", "integers"),
        ("t.bin", [good, good], "u2", "1 files of tokens and 2 of offsets"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            TokenSource(tmp_path / tokens, offsets, dtype=dtype)
    for documents, message in (([[1, 70_000]], "which uint16 cannot hold"), ([[0.5]], "wanted .* integers")):
        with pytest.raises(ValueError, match=message):
            write_tokens(tmp_path / "out.npy", documents)
    with pytest.raises(ValueError, match=r"ends in \.npy"):
        write_tokens(tmp_path / "out.bin", [])
    assert not (tmp_path / "out.npy").exists()


def test_tokens_that_change_under_a_run_are_an_error(tmp_path: Path) -> None:
    documents = written(tmp_path)
    packed = PackedSource(documents, 8)
    packed.load(0)
    with (tmp_path / "tokens.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SourceChanged):
        packed.load(0)
    with pytest.raises(SourceChanged):
        documents.load(0)


def test_a_shuffled_billion_items_keep_the_memory_flat() -> None:
    """In a process of its own, as its resident memory: what tracemalloc does not see counts, too."""
    import subprocess
    import sys

    script = """
import numpy as np
from hydrax_gpu import DataGroup, Dataloader

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def load(item, arrays, seed):
    arrays["x"][...] = item % 1000

group = DataGroup(64, range(10**9), loader_arrays={"x": ((), np.int32, np.int32)}, shuffle_first=True)
with Dataloader(load, group, executor="inline") as loader:
    for _ in range(50):
        next(loader)
    before = resident()
    for _ in range(1000):
        next(loader)
    grown = resident() - before
for start in (10**6, 10**7):
    with Dataloader(load, group, executor="inline", start_at=(0, start)) as loader:
        next(loader)
print(grown, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    within, after = map(int, done.stdout.split())
    assert within < 4 << 20 and after < 8 << 20, f"resident memory grew by {within:,} and {after:,} bytes"
