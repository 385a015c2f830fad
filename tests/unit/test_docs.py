"""The documentation is true where a machine can tell: its code runs, its links lead somewhere, its tests exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def script_of(page: Path) -> str:
    """All ```python blocks of a page as one script, each line at its own number: a traceback points at the page."""
    lines: list[str] = []
    inside = False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        if fence:
            inside = not inside and line.strip() == "```python"
        lines.append(line if inside and not fence else "")
    return "\n".join(lines).rstrip() + "\n"


def test_each_python_block_is_part_of_the_script(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n```python\na = 1\n```\n```sh\nls\n```\n```\nplain\n```\n```python\nb = 2\n```\n")
    lines = script_of(page).splitlines()
    assert [(number, line) for number, line in enumerate(lines, start=1) if line] == [(3, "a = 1"), (12, "b = 2")]


@pytest.mark.parametrize("page", [page for page in PAGES if script_of(page).strip()], ids=lambda page: page.name)
def test_code_of_the_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    if "nvidia.dali" in script_of(page):
        pytest.importorskip(
            "nvidia.dali",
            exc_type=ImportError,
            reason="NVIDIA DALI cannot be imported here: no wheel for this platform",
        )
    script = tmp_path / f"{page.stem}.py"
    script.write_text(script_of(page))
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{page.name} does not run:\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def test_readme_has_one_example() -> None:
    assert (ROOT / "README.md").read_text().count("```python\n") == 1


def test_every_page_of_the_navigation_exists_and_is_in_it() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = {file for entry in config["nav"] for file in entry.values()}
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    files = [target for target in targets if not re.match(r"\w+:", target)]
    assert [file for file in files if not (page.parent / file).exists()] == []


def test_feature_table_is_complete_and_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+)\*? \|[^|]*\| (.*?) \|$", (ROOT / "docs" / "features.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 46))
    for number, shown_by in rows:
        named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", shown_by)
        assert named or "missing: " in shown_by, f"row {number} neither names a test nor says what is missing"
        for file, function in named:
            assert (ROOT / file).exists(), f"row {number}: there is no {file}"
            assert f"def {function or ''}" in (ROOT / file).read_text(), f"row {number}: no {function} in {file}"
