"""`hydrax-gpu preview`: the batch that is asked for, its statistics, and the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hydrax_gpu.__main__ import main
from hydrax_gpu._preview import sheet
from hydrax_gpu._preview.statistics import describe_arrays, table

SCRIPT = """
import numpy as np
from hydrax_gpu import Dataloader, DataGroup

def load(item, arrays, seed):
    arrays["picture"][...] = item
    arrays["label"][...] = item % 3
    arrays["curve"][...] = np.sin(np.arange(9) + item)
    if item == 13:
        arrays["curve"][4] = np.nan
    if item == 30:
        raise OSError("unreadable on purpose")
    return {"name": f"number {item}"}

def make(executor="inline", **options):
    group = DataGroup(
        5, range(32), seed=3, shuffle_first=True,
        loader_arrays={
            "picture": ((8, 6, 3), "uint8", "uint8"), "label": ((), "int32", "int32"),
            "curve": ((9,), "float32", "float32"),
        },
    )
    return Dataloader(load, group, executor=executor, end_at=("epoch", 3), **options)

loader = make()
fixed = make()
entered = make()
entered.__enter__(); entered.__exit__(None, None, None)

def needs(name):
    return make()

class Names:
    inner = make()

number = 7

if __name__ == "__main__":
    hidden = make()
"""


@pytest.fixture(scope="module", autouse=True)
def _fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the files of the fonts that it has used open; that is no leak of ours."""
    sheet.draw(tmp_path_factory.mktemp("fonts") / "sheet.png", {"x": np.zeros((1, 2, 2))}, ["a"], "b")


@pytest.fixture
def script(tmp_path: Path) -> Iterator[str]:
    """The file with the loaders; each test has it imported anew."""
    path = tmp_path / "previewed.py"
    path.write_text(SCRIPT)
    yield str(path)
    sys.modules.pop("previewed", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["preview", *arguments])
    captured = capsys.readouterr()
    return status, captured.err if status else captured.out


def expected(script: str, batch: int) -> list[int]:
    """What the loader hands out as its training batch of that number."""
    namespace: dict[str, object] = {"__name__": "elsewhere"}
    exec(compile(Path(script).read_text(), script, "exec"), namespace)
    with namespace["make"](on_error="drop") as loader:  # type: ignore[operator]
        return next(list(each.indices) for each in loader if each.batch_num == batch)


def test_the_batch_that_is_asked_for(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    for batch in (0, 1, 8):
        status, text = run(capsys, f"{script}:make", "--batch", str(batch), "--json")
        assert status == 0, text
        found = json.loads(text)
        assert found["kind"] == "training" and f"training batch {batch}:" in found["title"]
        assert found["items"] == expected(script, batch)
        statistics = {each["name"]: each for each in found["arrays"]}
        assert statistics["picture"]["shape"] == [5, 8, 6, 3]
        assert statistics["picture"]["minimum"] == min(found["items"])
        assert statistics["picture"]["maximum"] == max(found["items"])
        assert statistics["picture"]["constant_rows"] == 5 and statistics["curve"]["constant_rows"] == 0
        assert statistics["curve"]["nan"] == (13 in found["items"])


def test_the_page_names_items_and_additional_data(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, f"{script}:loader")
    items = expected(script, 0)
    assert status == 0
    assert f"items: {', '.join(map(str, items))}" in text
    assert f"'number {items[0]}'" in text and "additional 'name'" in text
    assert "training batch 0: epoch 0, batch 0 of it" in text
    assert any(line.startswith("picture") and "5×8×6×3" in line and "uint8" in line for line in text.splitlines())
    assert all(len(line) < 220 for line in text.splitlines())


def test_a_saved_state_shows_what_comes_next(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "elsewhere"}
    exec(compile(Path(script).read_text(), script, "exec"), namespace)
    with namespace["make"]() as loader:  # type: ignore[operator]
        for _ in range(4):
            last = next(loader).batch_num
        (tmp_path / "state.json").write_text(json.dumps(loader.state()))
        following = next(loader)
        wanted, number = list(following.indices), following.batch_num
    status, text = run(capsys, f"{script}:make", "--state", str(tmp_path / "state.json"), "--json")
    assert status == 0, text
    assert json.loads(text)["items"] == wanted
    assert f"training batch {number}:" in json.loads(text)["title"] and number > last


def test_worker_processes_find_the_module(script: str) -> None:
    command = [sys.executable, "-m", "hydrax_gpu", "preview", f"{Path(script).name}:workers", "--json"]
    # a loader at the module's top level would be made in each worker, too, which refuses that
    head, _, _ = SCRIPT.partition("loader = make()")
    Path(script).write_text(head + 'workers = lambda: make("process", loader_count=2)\n')
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=Path(script).parent, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == expected(script, 0)


def test_the_sheet_shows_each_row_where_its_caption_is(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sheet.png"
    status, text = run(capsys, f"{script}:make", "-o", str(output), "--rows", "3")
    assert status == 0, text
    assert "3 rows, of 5 rows of picture, curve" in text
    with Image.open(output) as image:
        pixels = np.asarray(image.convert("RGB"))
    # each picture is of one value, and three neighbours in a row have theirs in their order
    items = expected(script, 0)[:3]
    grey = (pixels == pixels[..., :1]).all(axis=-1)
    centres = [np.argwhere(grey & (pixels[..., 0] == item)).mean(axis=0)[1] for item in items]
    assert len(set(items)) == 3 and centres == sorted(centres)
    assert all((grey & (pixels[..., 0] == item)).sum() > 1000 for item in items)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{}:nothing"], "has nothing called 'nothing'; it has the loaders loader, fixed, entered"),
        (["{}:number"], "is a int, wanted a Dataloader"),
        (["{}:hidden"], "has nothing called 'hidden'"),
        (["{}:needs"], "cannot be called without arguments: missing a required argument: 'name'"),
        (["{}:entered", "--batch", "1"], "was entered before"),
        (["{}:make", "--batch", "-1"], "start_at: got (0, -1)"),
        (["{}:make", "--batch", "18"], "the loader's end_at comes first"),
        (["{}:make", "--state", "{}.missing"], "the state cannot be read"),
        (["{}:make", "--state", "{}"], "is not JSON"),
        (["{}"], "wanted module:name"),
        (["no.such.module:loader"], "there is no module 'no'"),
        (["/no/such/file.py:loader"], "there is no file /no/such/file.py"),
        (["{}:make", "-o", "{}.nosuchformat"], "nosuchformat"),
    ],
)
def test_what_it_says_when_it_cannot(
    arguments: list[str], part: str, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = run(capsys, *(argument.format(script) for argument in arguments))
    assert status == 1 and part in text


def test_a_name_inside_a_class_and_a_state_of_another_order(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, f"{script}:Names.inner")[0] == 0
    namespace: dict[str, object] = {"__name__": "elsewhere"}
    exec(compile(SCRIPT.replace("seed=3", "seed=4"), "other", "exec"), namespace)
    (tmp_path / "state.json").write_text(json.dumps(namespace["loader"].state()))  # type: ignore[attr-defined]
    status, text = run(capsys, f"{script}:make", "--state", str(tmp_path / "state.json"))
    assert status == 1 and "seed" in text and "3" in text and "4" in text


def test_a_batch_that_was_dropped_is_not_passed_off_as_another(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "elsewhere"}
    exec(compile(Path(script).read_text(), script, "exec"), namespace)
    with namespace["make"]() as loader:  # type: ignore[operator]
        missing = set(range(18)) - {each.batch_num for each in loader}
    assert missing, "item 30 is in some batch"
    status, text = run(capsys, f"{script}:make", "--batch", str(min(missing)))
    assert status == 1 and f"batch {min(missing)} was dropped" in text and "30" in text


def test_an_error_of_the_users_module_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "faulty_module.py").write_text("import this_is_not_there\n")
    try:
        with pytest.raises(ModuleNotFoundError, match="this_is_not_there"):
            main(["preview", f"{tmp_path}/faulty_module.py:loader"])
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def test_statistics_leave_out_what_is_not_finite() -> None:
    values = np.array([[1, np.nan, 3], [np.inf, 5, -np.inf]], np.float32)
    (found,) = describe_arrays({"x": values})
    assert (found.minimum, found.maximum, found.mean) == (1.0, 5.0, 3.0)
    assert (found.nan, found.infinite, found.constant_rows) == (1, 2, 0)
    (nothing,) = describe_arrays({"x": np.full((2, 1), np.nan)})
    assert nothing.minimum is None and nothing.nan == 2 and "-" in table([nothing])
    (half,) = describe_arrays({"x": np.array([1.5, -2], ml_dtypes.bfloat16)})
    assert (half.dtype, half.minimum, half.maximum) == ("bfloat16", -2.0, 1.5)
    (magnitudes,) = describe_arrays({"x": np.array([3 + 4j])})
    assert magnitudes.maximum == 5.0


@given(
    st.sampled_from([(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4), (9, 8, 7), (3, 9, 8), (1, 9, 8), (300, 2, 3)]),
    st.sampled_from(["uint8", "int16", "float32", "bool", "complex64"]),
    st.integers(1, 3),
)
def test_every_shape_becomes_pictures(shape: tuple[int, ...], dtype: str, rows: int) -> None:
    numbers = np.random.default_rng(7).integers(0, 200, (rows, *shape))
    found = sheet.pictures_of(numbers.astype(dtype))
    assert found is not None and found.dtype == np.uint8 and found.ndim == 4 and found.shape[-1] == 3
    height, width = (shape[1], shape[2]) if shape[0] in (1, 3) and len(shape) == 3 else (shape[0], shape[1])
    assert found.shape[:3] == (rows, height if height <= 256 else -(-height // 2), width)
    if dtype == "uint8" and shape == (4, 5, 3):
        assert np.array_equal(found, numbers)
    elif dtype in ("float32", "int16") and len(set(numbers[..., :3].ravel())) > 1 and shape != (9, 8, 7):
        assert found.min() == 0 and found.max() == 255


def test_numbers_that_are_none_are_magenta_and_flat_arrays_no_pictures() -> None:
    values = np.zeros((1, 3, 3), np.float32)
    values[0, 1, 1] = np.nan
    found = sheet.pictures_of(values)
    assert found is not None and tuple(found[0, 1, 1]) == (255, 0, 255) and not found[0, 0, 0].any()
    for shape in ((2,), (2, 5), (2, 1, 5), (2, 3, 3, 3, 3)):
        assert sheet.pictures_of(np.zeros(shape)) is None
