"""The site of docs/: it builds without a warning, asks no other host for anything, and its commands are recipes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from recipes.catalogue import FOLDER
from recipes.compose import load_recipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDES = ("tutorial.md", "teachers.md")
LOADS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.docs
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    missing = [name for name in ("mkdocs", "material") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed; pip install -e '.[docs]'")
    config = DOCS / "site" / "mkdocs.yml"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        str(config),
        "-d",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    pages = {page.stem: page.read_text() for page in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= set(pages) and len(pages) > 10
    for name, text in pages.items():
        assert not LOADS.findall(text), name
        assert "googletagmanager" not in text and "fonts.gstatic" not in text, name
    assert not (tmp_path / "site" / "site").exists(), "the settings are not part of the site"


def test_every_command_of_the_guides_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    shutil.copytree(FOLDER, folder)
    for text in blocks("teachers.md", "yaml"):
        (name,) = yaml.safe_load(text)
        assert text.startswith("# "), "the line that --help shows"
        (folder / "targets" / f"{name}.yaml").write_text(text)
    (tmp_path / "videos").mkdir()
    (tmp_path / "weights" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    lines = [line for page in GUIDES for text in blocks(page, "bash") for line in text.splitlines()]
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("deepspeed distill/run.py ")]
    assert len(commands) == 5
    recipes = [load_recipe(words, folder=folder) for words in commands]
    assert recipes[1].converter is not None and recipes[1].converter.family == "dsconv"
    assert recipes[2].targets["videomae_ssv2"].revision == "COMMIT"
    assert recipes[3].targets["tiny"].weights == "weights/tiny" and list(recipes[3].targets) == ["tiny"]
    assert list(recipes[4].targets) == ["miniature_masked", "tiny"]
