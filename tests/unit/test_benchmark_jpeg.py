"""The benchmark `jpeg`: its photographs, its judgement of pictures, its limits. Nothing here measures speed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import harness, jpeg, jpeg_limits, peers, photo_work, photos, table
from benchmarks.accounts import memory
from benchmarks.harness import Case, Experiment, Goal, Metric, Run, Versus, run_case, target_case
from benchmarks.peers import choose
from benchmarks.photo_work import CHECKED, SIZE, draw, judge, load_pillow, reference

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"date": "2024-01-01", "machine": {}, "versions": {}}


def scene(width: int, height: int) -> Image.Image:
    """Something with edges, areas and colours, and no two parts alike."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / a + y * y / (90.0 * b)) + np.cos(y / b) for a, b in ((31, 17), (23, 29), (41, 13))]
    pixels = np.stack(waves, -1) * 60 + 128 + 30 * ((x // 40 + y // 40) % 2)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------ photographs


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Scenes in the place of the photographs that need packages, and few files."""
    stand_in = tmp_path / "source"
    stand_in.write_bytes(b"version 1")
    monkeypatch.setattr(photos, "_source", lambda index: scene(640, 427 + 20 * index))
    monkeypatch.setattr(photos, "_locate", lambda package, path: stand_in)
    monkeypatch.setattr(photos, "COUNT", 6)
    photos._recipe.cache_clear()
    yield stand_in
    photos._recipe.cache_clear()


def test_a_photograph_is_a_function_of_its_number(sources: Path) -> None:
    made = [photos.make(number) for number in range(4)]
    assert made == [photos.make(number) for number in range(4)]
    assert len(set(made)) == 4


def test_photographs_are_what_they_are_said_to_be(sources: Path) -> None:
    found = [Image.open(io.BytesIO(photos.make(number))) for number in range(12)]
    assert {image.size for image in found} == {(500, 375), (375, 500)}
    assert {(image.format, image.mode) for image in found} == {("JPEG", "RGB")}
    qualities = [photos._quality_of(image) for image in found]
    assert photos.QUALITIES[0] <= min(qualities) < max(qualities) <= photos.QUALITIES[1]


@given(st.tuples(st.integers(300, 1500), st.integers(300, 1500)), st.floats(-8, 8), st.integers(0, 2**32 - 1))
def test_a_part_that_is_turned_stays_within_its_picture(whole: tuple[int, int], degrees: float, seed: int) -> None:
    left, top, right, bottom = photos._part(whole, (500, 375), degrees, np.random.default_rng(seed))
    assert (right - left) / (bottom - top) == pytest.approx(500 / 375)
    centre = complex((left + right) / 2, (top + bottom) / 2)
    for corner in (complex(left, top), complex(right, top), complex(left, bottom), complex(right, bottom)):
        angle = np.exp(1j * np.radians(degrees))
        for turned in (centre + (corner - centre) * angle, centre + (corner - centre) / angle):
            assert -1e-6 <= turned.real <= whole[0] + 1e-6
            assert -1e-6 <= turned.imag <= whole[1] + 1e-6


def test_files_are_made_once_and_anew_when_the_recipe_changes(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    paths = photos.photographs(folder)
    assert [path.name for path in paths] == [f"{number:04d}.jpg" for number in range(6)]
    assert "6 JPEG files" in str(photos.describe(paths))
    paths[0].write_bytes(b"mark")
    assert photos.photographs(folder, 2) == paths[:2]
    assert paths[0].read_bytes() == b"mark"
    sources.write_bytes(b"version 2")
    photos._recipe.cache_clear()
    again = photos.photographs(folder)
    assert again[0].read_bytes() == photos.make(0)
    assert [path.name for path in folder.iterdir()] == [again[0].parent.name]


def test_what_was_left_unfinished_is_not_taken_for_the_files(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> bytes:
        if number == 4:
            raise KeyboardInterrupt
        return b""

    with monkeypatch.context() as patch:
        patch.setattr(photos, "make", fail)
        with pytest.raises(KeyboardInterrupt):
            photos.photographs(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    assert all(path.stat().st_size > 1000 for path in photos.photographs(tmp_path / "cache"))


def test_a_package_without_its_photographs_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"no_such_package.* is not installed. Install scikit-image"):
        photos._locate("no_such_package", "data/a.png")
    with pytest.raises(FileNotFoundError, match="not in "):
        photos._locate("numpy", "data/a.png")
    with pytest.raises(ValueError, match="0 photographs"):
        photos.photographs(count=0)


# -------------------------------------------------------------------------------------------------- judgement


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_parts_lie_within_the_picture(width: int, height: int, seed: int) -> None:
    x, y, w, h = draw(random.Random(seed).random, width, height)
    assert 0 <= x < x + w <= width
    assert 0 <= y < y + h <= height


def test_parts_have_the_areas_and_the_shapes_that_are_drawn() -> None:
    uniform = random.Random(0).random
    parts = np.array([draw(uniform, 500, 375) for _ in range(4000)])
    area, ratio = parts[:, 2] * parts[:, 3] / (500 * 375), parts[:, 2] / parts[:, 3]
    assert 0.078 < area.min() < 0.1
    assert area.max() > 0.95
    # within a pixel's rounding of the smallest part
    assert 0.74 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35
    # each place is as likely as any other
    assert (parts[:, 0] / (500 - parts[:, 2] + 1)).mean() == pytest.approx(0.5, abs=0.03)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(8):
        scene(500 - 10 * number, 375 + 10 * number).save(folder / f"{number:04d}.jpg", quality=95)
    return tuple(map(str, sorted(folder.iterdir())))


@pytest.fixture
def loaded(files: tuple[str, ...]) -> dict[str, np.ndarray]:
    arrays = {"image": np.zeros((8, SIZE, SIZE, 3), np.uint8), "index": np.zeros(8, np.int32)}
    arrays["box"] = np.zeros((8, 5), np.int32)
    for number, path in enumerate(files):
        load_pillow(path, {name: array[number, ...] for name, array in arrays.items()}, number)
    return arrays


def test_the_reference_is_judged_to_be_itself(files: tuple[str, ...], loaded: dict[str, np.ndarray]) -> None:
    result = judge(files, [loaded], 8)
    assert result["psnr_low_db"] > 80
    assert result["mean_error"] == 0


def test_the_reference_is_the_triangle_filter_on_the_part_alone(files: tuple[str, ...]) -> None:
    # halved: weights 1 3 3 1 by half-pixel centres, less what lies outside of the part at its borders
    found = reference(Path(files[0]), (20, 30, 2 * SIZE, SIZE, 0)).astype(np.float64)
    with Image.open(files[0]) as image:
        part = np.asarray(image.convert("RGB"), np.float64)[30 : 30 + SIZE, 20 : 20 + 2 * SIZE]
    weights = np.zeros((SIZE, 2 * SIZE))
    for out in range(SIZE):
        for position, weight in zip(range(2 * out - 1, 2 * out + 3), (1, 3, 3, 1), strict=True):
            if 0 <= position < 2 * SIZE:
                weights[out, position] = weight
    weights /= weights.sum(1, keepdims=True)
    assert abs(np.einsum("oi,yic->yoc", weights, part) - found).max() <= 1


def spoil(arrays: dict[str, np.ndarray], how: str) -> None:
    if how == "not mirrored":
        arrays["image"] = arrays["image"][:, :, ::-1]
    elif how == "another file":
        arrays["index"] = np.roll(arrays["index"], 1)
    elif how == "another part":
        arrays["box"][:, 0] += 40
        arrays["box"][:, 2] -= 40
    elif how == "colours swapped":
        arrays["image"] = arrays["image"][..., ::-1]
    elif how == "one is missing":
        arrays["image"][3] = 0
    elif how == "the same file twice":
        arrays["index"][1] = arrays["index"][0]
    elif how == "no such file":
        arrays["index"][1] = 8
    elif how == "float":
        arrays["image"] = arrays["image"].astype(np.float32)
    elif how == "too few":
        arrays["index"] = arrays["index"][:4]


@pytest.mark.parametrize(
    "how",
    [
        *("not mirrored", "another file", "another part", "colours swapped", "one is missing"),
        *("the same file twice", "no such file", "float", "too few"),
    ],
)
def test_what_was_not_asked_for_is_noticed(files: tuple[str, ...], loaded: dict[str, np.ndarray], how: str) -> None:
    spoil(loaded, how)
    with pytest.raises(AssertionError):
        judge(files, [loaded], 8)


@pytest.mark.parametrize("how", ["one is missing", "the same file twice", "float"])
def test_a_loader_that_does_not_say_which_part_it_took_is_judged_too(
    files: tuple[str, ...], loaded: dict[str, np.ndarray], how: str
) -> None:
    del loaded["box"]
    assert judge(files, [loaded], 8) == {}
    spoil(loaded, how)
    with pytest.raises(AssertionError):
        judge(files, [loaded], 8)


def test_a_loader_that_does_less_is_noticed(files: tuple[str, ...]) -> None:
    """It always takes the same small part, which is cheaper to decode, or never mirrors."""
    for part, flips in (((100, 80, 110, 110), (0, 1)), ((10, 10, 330, 250), (0,))):
        boxes = [(*part, flips[position % len(flips)]) for position in range(8)]
        images = np.stack([reference(Path(path), box) for path, box in zip(files, boxes, strict=True)])
        arrays = {"image": images, "index": np.arange(8), "box": np.array(boxes)}
        with pytest.raises(AssertionError, match="not drawn as they should be"):
            judge(files, [arrays] * (CHECKED // 8), 8)


def test_the_work_is_imported_without_jax() -> None:
    script = "import sys, benchmarks.photo_work; print({'jax', 'PIL', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "set()", done.stderr


# ----------------------------------------------------------------------------------------------------- limits


def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The libjpeg-turbo that would be measured, or a skip that says what is missing."""
    monkeypatch.setattr(jpeg_limits, "CACHE", tmp_path)
    try:
        return jpeg_limits.preferred()[1]
    except jpeg_limits.MissingToolError as problem:
        pytest.skip(f"the limits cannot be measured here: {problem}")


READ = """
import json, sys
from pathlib import Path
import numpy as np
from benchmarks import jpeg_limits
jpeg_limits.CACHE = Path(sys.argv[1])
reader = jpeg_limits.Reader(sys.argv[2])
out = {}
for kind in ("huffman", "region", "full"):
    for path in sys.argv[3:]:
        try:
            pixels = getattr(reader, kind)(path.encode(), (100, 50, 200, 150))
            out[f"{kind} {Path(path).name}"] = None if pixels is None else pixels.tolist()
        except RuntimeError as error:
            out[f"{kind} {Path(path).name}"] = str(error)
reader.leave()
print(json.dumps(out))
"""


def test_the_limits_decode_what_they_should(
    files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = native(tmp_path, monkeypatch)
    (tmp_path / "broken.jpg").write_bytes(b"no JPEG")
    paths = [files[0], files[5], str(tmp_path / "broken.jpg"), str(tmp_path / "missing.jpg"), files[0]]
    # in its own process, as libjpeg-turbo is loaded for all to see
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), library, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for path in (files[0], files[5]):
        name = Path(path).name
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))[50:200, 100:300].astype(int)
        np.testing.assert_array_equal(found[f"full {name}"], expected)
        # columns at the part's borders are interpolated without their neighbours
        difference = abs(np.array(found[f"region {name}"]) - expected)
        assert difference[1:-1, 2:-2].max() <= 2
        assert found[f"huffman {name}"] is None
    for kind in ("huffman", "region", "full"):
        assert "libjpeg reported an error" in found[f"{kind} broken.jpg"]
        assert "could not be read" in found[f"{kind} missing.jpg"]


def test_a_limit_that_cannot_be_measured_is_left_out_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jpeg_limits, "CACHE", tmp_path)
    monkeypatch.setattr(jpeg_limits.shutil, "which", lambda name: None)
    (experiment,) = jpeg.experiments(tmp_path, choose(None, ["FFCV"], {}), warm_s=0, window_s=0)
    assert {experiment.left_out[name] for name in jpeg.LIMITS} == {"no C compiler (cc, gcc or clang)"}
    text = table.render(experiment.title, list(table.summary_rows(experiment, [], ABOUT)))
    assert "limit: part + resize" in text
    assert "! left out: no C compiler" in text


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("cv2", "OpenCV is not"),
        ("nvidia.nvimgcodec simplejpeg", "none of nvImageCodec, simplejpeg"),
        ("grain", "grain is"),
    ],
)
def test_a_peer_that_lacks_something_is_left_out_and_says_what(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, reason: str
) -> None:
    for module in (jpeg, peers):
        monkeypatch.setattr(module, "has_module", lambda python, module: module not in missing.split())
    (experiment,) = jpeg.experiments(tmp_path, choose(None, ["Grain", "DALI"], {}), warm_s=0, window_s=0)
    assert experiment.left_out["Grain"].startswith(reason)
    names = [case.name for case in experiment.cases]
    assert {"hydrax_gpu", "DALI"} <= set(names)
    assert "Grain" not in names
    assert experiment.versus is not None
    assert experiment.versus.others == ("DALI",)


def test_a_decoder_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(wanted: str, installed: set[str]) -> str:
        photo_work.fastest_decoder.cache_clear()
        monkeypatch.setenv(photo_work.DECODER, wanted)
        monkeypatch.setattr(photo_work, "_installed", lambda module: module in installed)
        return photo_work.fastest_decoder()

    both = set(photo_work.DECODERS.values())
    assert chosen("", both) == "nvImageCodec"
    assert chosen("", {"simplejpeg"}) == "simplejpeg"
    assert chosen("simplejpeg", both) == "simplejpeg"
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        chosen("simplejpeg", {"nvidia.nvimgcodec"})
    with pytest.raises(ValueError, match="wanted one of"):
        chosen("Photoshop", both)
    photo_work.fastest_decoder.cache_clear()


# ---------------------------------------------------------------------------------------- additions to the harness


def test_the_best_of_the_others_is_compared_within_each_round() -> None:
    cost = Metric("cpu", "µs")
    versus = Versus("cpu", "× of the best other", "ours", ("slow", "fast", "broken"), Goal(at_least=1.25))
    cases = tuple(Case(name, "none", judged=name == "ours") for name in ("ours", "slow", "fast", "broken"))
    experiment = Experiment("name", "title", cases, (cost,), versus)
    runs = [
        Run(case, round_, {"cpu": value * speed})
        for round_, speed in enumerate((1.0, 10.0, 100.0))
        for case, value in (("ours", 10.0), ("slow", 40.0), ("fast", 13.0))
    ]
    runs.append(Run("broken", 0, error="it failed"))
    rows = [row for row in table.summary_rows(experiment, runs, ABOUT) if row["metric"] == "cpu_of_best_other"]
    assert [(row["case"], row["label"], row["met"]) for row in rows] == [("ours", "× of the best other: fast", True)]
    assert rows[0]["value"]["low"] == rows[0]["value"]["high"] == pytest.approx(1.3)


def test_the_memory_of_all_processes_is_seen_at_its_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    os.mkfifo(seen)

    def spy(pid: int) -> dict[str, float]:
        found = memory(pid)
        if found["own_mb"] > 200:
            # the case waits for this, so that what it takes cannot be missed
            with contextlib.suppress(OSError):
                os.close(os.open(seen, os.O_WRONLY | os.O_NONBLOCK))
        return found

    monkeypatch.setattr(harness, "memory", spy)
    monkeypatch.setattr(harness, "WEIGH_S", 0.02)
    run = run_case(target_case("hungry", "tests.unit.test_benchmark_jpeg:eat", memory=True, seen=str(seen)), 0, 100.0)
    assert run.error is None, run.stderr
    assert 200 < (run.value("peak_pss_mb") or 0.0) < 400
    assert (run.value("at_end_mb") or 1e9) < 200


def eat(seen: str) -> dict[str, Any]:
    """A child takes memory, and gives it back when it was seen."""
    script = "data = b'x' * 200_000_000; print(len(data), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    Path(seen).read_bytes()  # returns when the other side has been opened and closed
    child.communicate(b"\n")
    return {"at_end_mb": memory(os.getpid())["pss_mb"]}


def test_a_case_can_have_an_interpreter_of_its_own(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 'this is not Python' >&2\nexit 3\n")
    other.chmod(0o755)
    run = run_case(target_case("other", "json:loads", python=str(other)), 0, 100.0)
    assert run.error == "exit status 3: this is not Python"
