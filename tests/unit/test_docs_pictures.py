"""The documentation's pictures: the scripts still make them, and those that are shown are the ones that they make."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PICTURES = DOCS / "pictures"
LARGEST = 60_000


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PICTURES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_diagrams_are_what_their_script_makes(tmp_path: Path) -> None:
    module("diagrams").main(tmp_path)
    made = sorted(tmp_path.iterdir())
    assert [path.name for path in made] == ["batch.svg", "fence.svg"]
    for path in made:
        assert path.read_text() == (PICTURES / path.name).read_text(), f"python docs/pictures/diagrams.py: {path.name}"
        root = ElementTree.parse(path).getroot()
        # nothing is drawn outside of the drawing
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for part in root.iter("{http://www.w3.org/2000/svg}rect"):
            at = {name: float(part.attrib[name]) for name in ("x", "y", "width", "height")}
            assert 0 <= at["x"] <= at["x"] + at["width"] <= width
            assert 0 <= at["y"] <= at["y"] + at["height"] <= height


def test_the_pictures_of_a_run_can_be_made(tmp_path: Path) -> None:
    for name in ("PIL", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, str(PICTURES / "run.py"), str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.png", "timeline.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_pictures_are_small_and_every_one_is_shown() -> None:
    there = {path.name: path.stat().st_size for path in PICTURES.iterdir() if path.suffix in (".svg", ".png")}
    assert all(size < LARGEST for size in there.values()), there
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert set(re.findall(r"\]\(pictures/([\w.]+)\)", pages)) == set(there)
