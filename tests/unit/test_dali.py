"""DALI graphs as loaders: what goes in, what comes out, and that it is the same however it is loaded."""

from __future__ import annotations

import hashlib
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "nvidia.dali", exc_type=ImportError, reason="NVIDIA DALI cannot be imported here: it has no wheel for this platform"
)

from hydrax_gpu import DataGroup, Dataloader, LoaderError
from hydrax_gpu._plan.philox import philox4x32
from hydrax_gpu.loaders import DaliLoader, RowsLoader
from tests import dali_graphs as graphs
from tests.dali_pictures import encoded
from tests.small import loader

ARRAYS = {"image": ((24, 32, 3), np.uint8, np.uint8), "label": ((), np.int64, np.int32)}
NUMBER = {"x": ((), np.int64, np.int32)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for number in range(20):
        path = folder / f"{number}.jpg"
        path.write_bytes(encoded(number, height=40 + number, width=60 + 3 * number))
        found.append((path, number))
    return found


def group(data: Any, size: int = 4, arrays: Any = None, **options: Any) -> DataGroup[Any]:
    return DataGroup(size, data, loader_arrays=arrays or ARRAYS, **options)


def values(load: Any, data: Any, arrays: Any, **options: Any) -> list[dict[str, Any]]:
    """The first batches' arrays, loaded inline."""
    found = []
    with loader(load, group(data, len(data), arrays, **options), on_error="raise", delivery="copy") as it:
        for batch in it:
            found.append({name: np.asarray(array) for name, array in batch.arrays.items()})
    return found


def refusal(load: Any, data: Any, arrays: Any, **options: Any) -> str:
    """What is said about an item in the run's error."""
    with pytest.raises(LoaderError) as caught:
        values(load, data, arrays, **options)
    return str(caught.value)


# Determinism.


def digests(it: Dataloader[Any]) -> dict[tuple[Any, ...], str]:
    """(kind, epoch, item) → what its row held."""
    found: dict[tuple[Any, ...], str] = {}
    with it:
        for batch in it:
            arrays = {name: np.asarray(array) for name, array in batch.arrays.items()}
            for row, item in enumerate(batch.indices):
                if batch.valid[row]:
                    key = (batch.is_training, batch.epoch if batch.is_training else 0, item)
                    found[key] = hashlib.sha256(b"".join(a[row].tobytes() for a in arrays.values())).hexdigest()
            del batch, arrays
    return found


def run(files: Any, size: int = 8, *, threads: int | None = None, **options: Any) -> Dataloader[Any]:
    load = DaliLoader(graphs.augment, fields=("image", "label"), num_threads=threads)
    training = group(files, size, seed=5, shuffle_first=True, remainder="short")
    validation = ("epoch", 1, group(files[:6], 3, remainder="short"))
    options = {"end_at": ("epoch", 2), "validation": validation, "executor": "inline", "on_error": "raise"} | options
    return Dataloader(load, training, **options)


@pytest.fixture(scope="module")
def reference(files: Any) -> dict[tuple[Any, ...], str]:
    return digests(run(files))


def test_the_reference_has_every_item_of_every_epoch_and_no_two_alike(reference: Any) -> None:
    assert len(reference) == 2 * 20 + 6
    assert len(set(reference.values())) == len(reference)


@pytest.mark.parametrize(
    "how",
    [
        {"size": 1},
        {"size": 5, "threads": 3},
        {"size": 20, "threads": 1},
        {"executor": "thread", "loader_count": 1},
        {"executor": "thread", "loader_count": 3, "depth": 2, "threads": 2},
        {"executor": "process", "loader_count": 2, "size": 6},
        {"executor": "process", "loader_count": 1, "deterministic": False},
    ],
    ids=str,
)
def test_each_item_comes_out_the_same_however_it_is_loaded(files: Any, reference: Any, how: dict[str, Any]) -> None:
    assert digests(run(files, **how)) == reference


@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_resumed_run_comes_to_the_same(files: Any, reference: Any, done: int) -> None:
    first = run(files)
    with first:
        for _ in range(done):
            batch = next(first)
            del batch
    rest = digests(run(files, start_at=first.state()))
    assert 0 < len(rest) < len(reference)
    assert all(reference[key] == value for key, value in rest.items())


# Random numbers.

DRAWS = {
    "uniform": ((), np.float32, np.float32),
    "corner": ((2, 3), np.float32, np.float32),
    "flip": ((), np.int32, np.int32),
    "normal": ((4,), np.float32, np.float32),
    "index": ((), np.int64, np.int32),
    "value": ((), np.float64, np.float32),
    "even": ((), np.int16, np.int16),
    "data": ((), np.int64, np.int32),
}


GOLDEN: dict[str, Any] = {
    "uniform": [2.0904, 2.3386],
    "corner": [
        [[0.9801, 0.552, 0.7421], [0.413, -0.8111, -0.2718]],
        [[0.6697, 0.9943, 0.7018], [0.942, 0.2555, -0.7129]],
    ],
    "flip": [0.0, 0.0],
    "normal": [[9.4872, 8.9023, 9.3991, 13.4535], [9.5766, 8.8093, 9.3901, 12.0448]],
    "index": [9.0, 7.0],
    "value": [2.5, 2.5],
    "even": [2.0, 2.0],
    "data": [0.0, 1.0],
}


def test_draws_stay_what_they_are() -> None:
    """From one release to the next: changing these changes every run."""
    (batch,) = values(DaliLoader(graphs.draws), range(2), DRAWS, seed=1)
    found = {name: np.round(array.astype(np.float64), 4).tolist() for name, array in batch.items()}
    assert found == GOLDEN


def test_draws_are_what_the_formulas_say() -> None:
    """`dali_random` gives them; here they are once more, a number at a time."""

    def uniforms(seed: int, site: int, element: int) -> tuple[float, float]:
        words = [int(w) for w in philox4x32((seed % 2**32, seed // 2**32, element, 6), site)]
        return tuple((words[i] + 2**32 * words[i + 1] >> 11) / 2**53 for i in (0, 2))  # type: ignore[return-value]

    with loader(DaliLoader(graphs.draws), group(range(50), 50, DRAWS, seed=7), on_error="raise") as it:
        batch = next(it)
        for row, seed in enumerate(batch.seeds):
            at = {name: np.asarray(array)[row] for name, array in batch.arrays.items()}
            assert at["uniform"] == np.float32(2 + 3 * uniforms(seed, 0, 0)[0])
            corner = [-1 + 2 * uniforms(seed, 1, element)[0] for element in range(6)]
            assert (at["corner"].ravel() == np.float32(corner)).all()
            assert at["flip"] == (uniforms(seed, 2, 0)[0] < 0.25)
            for element in range(4):
                u, v = uniforms(seed, 3, element)
                normal = 10 + 2 * math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)
                assert at["normal"][element] == pytest.approx(normal, rel=1e-6)
            assert at["index"] == math.floor(10 * uniforms(seed, 4, 0)[0])
            assert at["value"] == (2.5 if uniforms(seed, 5, 0)[0] < 0.5 else 9.5)
            assert at["even"] == (2, 4, 6)[math.floor(3 * uniforms(seed, 6, 0)[0])]
        del batch


def test_draws_are_distributed_as_they_should_be() -> None:
    (batch,) = values(DaliLoader(graphs.draws), range(20_000), DRAWS, seed=2)
    uniform, corner, normal = batch["uniform"], batch["corner"], batch["normal"]
    assert 2 <= uniform.min() < 2.01 and 4.99 < uniform.max() < 5 and abs(uniform.mean() - 3.5) < 0.03
    assert corner.min() >= -1 and corner.max() < 1
    assert np.abs(np.corrcoef(corner.reshape(-1, 6).T) - np.eye(6)).max() < 0.03, "elements are independent"
    assert abs(normal.mean() - 10) < 0.03 and abs(normal.std() - 2) < 0.03
    assert abs(batch["flip"].mean() - 0.25) < 0.01 and set(batch["flip"].tolist()) == {0, 1}
    assert np.abs(np.bincount(batch["index"], minlength=10) / 2000 - 1).max() < 0.1
    assert set(batch["value"].tolist()) == {2.5, 9.5} and set(batch["even"].tolist()) == {2, 4, 6}
    assert len(set(uniform.tolist())) > 19_900


def test_validation_has_nothing_to_draw_from(files: Any) -> None:
    load = DaliLoader(graphs.draws_in_validation)
    validation = ("batch", 1, group(range(4), arrays={"x": ((), np.float32, np.float32)}))
    training = group(range(4), arrays={"x": ((), np.float32, np.float32)})
    with (
        pytest.raises(LoaderError, match=r"(?s)random.uniform\(\) was called for validation.*if sample.training:"),
        loader(load, training, validation=validation, on_error="raise") as it,
    ):
        for batch in it:
            del batch


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (lambda sample: sample.random.uniform((1.0, 1.0)), r"got range \(1.0, 1.0\), wanted \(low, high\)"),
        (lambda sample: sample.random.uniform(dtype="int32"), r"got dtype int32.*sample.random.choice\(n\)"),
        (lambda sample: sample.random.coin_flip(2), "got probability 2, wanted 0 to 1"),
        (lambda sample: sample.random.normal(0, -1), "stddev -1, wanted finite numbers"),
        (lambda sample: sample.random.choice([]), r"got a=\[\], wanted a positive number or a sequence"),
        (lambda sample: sample.random.choice(3, p=[0.5, 0.5]), "wanted 3 probabilities that sum up to 1"),
        (lambda sample: sample.random.coin_flip(shape=(0,)), "wanted dimensions of at least 1"),
    ],
)
def test_draws_that_make_no_sense_are_refused(graph: Any, text: str) -> None:
    with pytest.raises(LoaderError, match=text):
        values(DaliLoader(graph), range(2), NUMBER)


@pytest.mark.parametrize(
    ("graph", "operator"),
    [
        (graphs.dali_random, "random.Uniform"),
        (graphs.dali_noise, "noise.Gaussian"),
        (graphs.dali_crop, "decoders.ImageRandomCrop"),
        (graphs.dali_reader, "readers.File"),
        (graphs.own_source, "fn.external_source"),
        (graphs.mixes, "PermuteBatch"),
        (graphs.normalizes, "Normalize(batch=True)"),
    ],
)
def test_operators_with_a_state_of_their_own_are_refused(graph: Any, operator: str) -> None:
    text = refusal(DaliLoader(graph), [3], NUMBER)
    assert f"the graph has the operator {operator} in it, and" in text and "sample.random" in text


# Items.


def test_all_kinds_of_descriptors_have_fields(files: Any) -> None:
    pairs = files[:4]
    kinds: dict[str, tuple[Any, list[Any]]] = {
        "tuple": (("image", "label"), pairs),
        "list": (("image", "label"), [list(pair) for pair in pairs]),
        "named tuple": (None, [graphs.Photo(*pair) for pair in pairs]),
        "dataclass": (None, [graphs.Picture(*pair) for pair in pairs]),
        "mapping": (None, [{"label": label, "image": path, "unused": object()} for path, label in pairs]),
        "str": (("image", "label"), [(str(path), label) for path, label in pairs]),
        "bytes": (("image", "label"), [(path.read_bytes(), label) for path, label in pairs]),
        "array": (("image", "label"), [(np.fromfile(path, np.uint8), np.int64(label)) for path, label in pairs]),
    }
    found = {
        kind: values(DaliLoader(graphs.augment, fields=fields), data, ARRAYS) for kind, (fields, data) in kinds.items()
    }
    for kind, (batch,) in found.items():
        assert batch["label"].tolist() == [0, 1, 2, 3], kind
        assert (batch["image"] == found["tuple"][0]["image"]).all(), kind


def test_fields_can_be_read_by_a_function_of_the_users() -> None:
    load = DaliLoader(graphs.doubled, read={"data": len})
    (batch,) = values(load, ["a", "bb", "ccc"], NUMBER)
    assert batch["x"].tolist() == [2, 4, 6]


def test_two_groups_can_have_other_descriptors() -> None:
    validation = ("epoch", 1, group([{"data": 5}, {"data": 6}], 2, NUMBER))
    with loader(DaliLoader(graphs.doubled), group([1, 2], 2, NUMBER), validation=validation, on_error="raise") as it:
        assert [batch.arrays["x"].tolist() for batch in it] == [[2, 4], [10, 12]]


@pytest.mark.parametrize(
    ("graph", "options", "data", "text"),
    [
        (graphs.passes, {}, [(b"x", 1)], r"of type tuple with 2 parts, but fields=None: name each of them"),
        (graphs.passes, {"fields": ("image",)}, [(b"x", 1)], "with 2 parts, but fields="),
        (graphs.passes, {"fields": ("image",)}, [{"image": b"x"}], "the items name their fields themselves: image"),
        (graphs.doubled, {"fields": ("a", "b")}, [1], "the items have one part each, a int"),
        (graphs.doubled, {"read": {"dta": len}}, [1], "the items have no field dta; they have data"),
        (
            graphs.misspells,
            {"fields": ("image", "label")},
            [(b"x", 1)],
            "no field 'picture'; they have 'image', 'label'",
        ),
        (graphs.doubled, {}, [object()], "field 'data': got object, wanted a path, bytes, a number or an array"),
        (graphs.doubled, {}, [b""], "field 'data' is empty"),
        (graphs.doubled, {}, ["/no/such/file"], "No such file or directory: '/no/such/file'"),
        (graphs.doubled, {}, ["/"], "/: not a file, but a directory"),
    ],
)
def test_descriptors_that_do_not_fit_are_told(graph: Any, options: Any, data: Any, text: str) -> None:
    assert text in refusal(DaliLoader(graph, **options), data, NUMBER if graph is not graphs.passes else ARRAYS)


def test_a_field_that_is_of_another_kind_in_one_item_is_that_items_fault() -> None:
    text = refusal(DaliLoader(graphs.doubled), [1, 2, 2.5, 4], NUMBER)
    assert "item 2 " in text


# Outputs.


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (
            graphs.forgets_an_array,
            "nothing for the arrays label and returned lable, which no array is declared for",
        ),
        (
            graphs.decode_field,
            "returned a DataNode, wanted a dict with a node for each of the arrays image, label",
        ),
        (graphs.no_node, "the graph returned a str for 'label', wanted a node"),
        (
            graphs.image_as_float,
            "the graph's output 'image' has shape (24, 32, 3) and dtype float32, but the array 'image' is declared "
            "with the item shape (24, 32, 3) and dtype uint8. Convert it in the graph with fn.cast",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_told(files: Any, graph: Any, text: str) -> None:
    assert text in refusal(DaliLoader(graph, fields=("image", "label")), files[:2], ARRAYS)


def test_ragged_outputs_are_refused_by_item_or_padded() -> None:
    arrays = {"values": ((4,), np.float32, np.float32), "length": ((), np.int64, np.int32)}
    data = [[1.0, 2.0, 3.0, 4.0], [5.0], [6.0, 7.0]]
    text = refusal(DaliLoader(graphs.ragged, read={"data": np.float32}), [{"data": each} for each in data], arrays)
    assert "item 1 " in text and "output 'values' has shape (1,)" in text and "pad={'values': 0}" in text
    load = DaliLoader(graphs.ragged, read={"data": np.float32}, pad={"values": -1})
    (batch,) = values(load, [{"data": each} for each in data], arrays)
    assert batch["values"].tolist() == [[1, 2, 3, 4], [5, -1, -1, -1], [6, 7, -1, -1]]
    assert batch["length"].tolist() == [4, 1, 2]
    text = refusal(load, [{"data": [1.0] * 5}], arrays)
    assert "output 'values' has shape (5,)" in text and "Padding makes outputs larger, never smaller" in text
    text = refusal(DaliLoader(graphs.ragged, pad={"values": -1}), [{"data": [[1.0]]}], arrays)
    assert "output 'values' has shape (1, 1)" in text and "fn.squeeze" in text
    load = DaliLoader(graphs.ragged, read={"data": np.float32}, pad={"valves": -1})
    assert "pad: there is no array valves" in refusal(load, [{"data": [1.0]}], arrays)


# The loader itself.


def test_it_is_a_loader_of_rows_and_loads_one_item_when_it_is_called(files: Any) -> None:
    load: RowsLoader = DaliLoader(graphs.augment, fields=("image", "label"))
    assert isinstance(load, DaliLoader)
    arrays = {"image": np.zeros((24, 32, 3), np.uint8), "label": np.zeros((), np.int64)}
    load(files[7], arrays, None)
    assert arrays["label"] == 7 and arrays["image"].std() > 10
    with pytest.raises(OSError, match="no/such"):
        load(("no/such", 1), arrays, None)


def test_what_cannot_be_sent_to_workers_is_told() -> None:
    load = DaliLoader(lambda sample: sample.data)
    with pytest.raises(TypeError, match=r"the DaliLoader's graph cannot be sent to worker processes.*lambdas"):
        pickle.dumps(load)
    with (
        pytest.raises(TypeError, match="the DaliLoader's graph cannot be sent"),
        loader(load, group(range(4), arrays=NUMBER), executor="process"),
    ):
        pass
    with pytest.raises(TypeError, match="the DaliLoader's read cannot be sent"):
        pickle.dumps(DaliLoader(graphs.doubled, read={"data": lambda value: value}))


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"graph": 3}, TypeError, "graph: got int, wanted a function"),
        ({"encoded_bytes": -1}, ValueError, "encoded_bytes: got -1, wanted at least 0"),
        ({"device": "tpu"}, ValueError, "device: got 'tpu', wanted one of 'auto', 'cpu', 'gpu'"),
        ({"fields": "image"}, TypeError, r"fields: got 'image', wanted a sequence of names, such as \('image',\)"),
        ({"read": {"data": 3}}, TypeError, "read: got 3 for field 'data', wanted a function"),
        ({"num_threads": 0}, ValueError, "num_threads: got 0, wanted at least 1"),
        ({"max_pixels": 0}, ValueError, "max_pixels: got 0, wanted at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_told(options: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        DaliLoader(**({"graph": graphs.doubled} | options))


def test_without_dali_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hydrax-gpu\[dali\]'"):
        DaliLoader(graphs.doubled)
