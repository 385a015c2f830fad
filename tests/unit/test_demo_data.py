"""The demo on pictures of one's own: `--data DIR`."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hydrax_gpu import DataGroup, Dataloader
from tests import image_files as pictures

DEMO = Path(__file__).resolve().parents[2] / "docs" / "examples" / "digits"


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DEMO))
    yield importlib.import_module("folders")
    for name in ("folders", "loader"):
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes, reddish and bluish, in files of every kind that has colours; one of them is damaged."""
    for name, tint in (("red", (255, 90, 80)), ("blue", (60, 80, 255))):
        (tmp_path / "data" / name / "more").mkdir(parents=True)
        for number in range(12):
            photo = pictures.photograph(60, 50, number)
            tinted = Image.blend(photo, Image.new("RGB", photo.size, tint), 0.6)
            kind = ("JPEG", "PNG", "WEBP", "BMP")[number % 4]
            folder = tmp_path / "data" / name / ("more" if number > 8 else "")
            (folder / f"{number:02}.{kind.lower()}").write_bytes(pictures.encoded(tinted, kind))
    (tmp_path / "data" / "red" / "07.bmp").write_bytes(b"not a picture")
    (tmp_path / "data" / ".hidden").mkdir()
    return tmp_path / "data"


def test_every_file_is_training_or_validation_and_has_its_class(folders: Any, data: Path) -> None:
    classes, training, validation = folders.read_folders(data)
    assert classes == ["blue", "red"]
    assert len(training) + len(validation) == 24
    assert not {path for path, _ in training} & {path for path, _ in validation}
    assert all(classes[label] in path for path, label in (*training, *validation))
    assert {label for _, label in validation} == {0, 1}


def test_its_loader_reads_them_all_but_the_bad_one(folders: Any, data: Path) -> None:
    _, training, _ = folders.read_folders(data)
    load = folders.new_image_loader()
    group = DataGroup(4, training, loader_arrays=load.arrays(), remainder="pad")
    it = Dataloader(load, group, executor="inline", on_error="replace", end_at=("epoch", 1))
    with it:
        for batch in it:
            image, label = np.array(batch.arrays["image"], float), np.array(batch.arrays["label"])
            assert image.shape == (4, 32, 32, 3)
            reddish = image[..., 0].mean(axis=(1, 2)) > image[..., 2].mean(axis=(1, 2))
            assert (reddish == (label == 1)).all()
            del batch
    (bad,) = it.report().bad
    assert "07.bmp" in bad.error


def test_a_folder_without_classes_is_refused(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0 folders"):
        folders.read_folders(tmp_path)


def test_the_demo_runs_on_them(data: Path, tmp_path: Path) -> None:
    missing = [name for name in ("optax", "matplotlib", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of the extra `demo` are not installed here; `make demo` installs them")
    command = [sys.executable, str(DEMO / "train.py"), "--data", str(data), "--workdir", str(tmp_path / "work")]
    done = subprocess.run([*command, "--epochs", "1"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "2 classes" in done.stdout
    assert "after 1 epochs" in done.stdout
    assert (tmp_path / "work" / "batch.png").exists()
