"""The wheel: what is in it, and that the two top-level folders are found once it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "search_spaces")


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the build backend that is installed, so without network and without writing to the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=REPOSITORY)
    (path,) = folder.glob("raylg-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer makes of a pure wheel: its files, unpacked in a folder of the path."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_the_package_and_both_folders(installed: Path) -> None:
    expected = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "raylg").rglob("*.py")}
    expected |= {path.relative_to(REPOSITORY) for path in (REPOSITORY / "raylg/data/scene_lists").glob("*.txt")}
    for folder in FOLDERS:
        files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.yaml")]
        assert files
        expected |= {Path("raylg") / path for path in files}
    assert expected <= {path.relative_to(installed) for path in installed.rglob("*")}


def test_wheel_puts_nothing_else_on_the_path(installed: Path) -> None:
    assert sorted(path.name.split("-")[0] for path in installed.iterdir()) == ["raylg", "raylg"]


def test_metadata(installed: Path) -> None:
    (info,) = installed.glob("raylg-*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (info / "licenses" / "LICENSE").is_file()
    assert "raylg = raylg.__main__:main" in (info / "entry_points.txt").read_text()
    required = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert all(">=" in r and "<" in r for r in required), required


def test_installed_package_finds_configurations_and_search_spaces(installed: Path, tmp_path: Path) -> None:
    script = """
import raylg, raylg.config
print(raylg.__file__)
raylg.config.load([])
for name in ("lr_bs", "smoke"):
    print(raylg.config.load_space(name)[0])
"""
    lines = run("-c", script, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert Path(lines[0]).is_relative_to(installed)
    assert lines[1:] == ["lr_bs", "smoke"]
