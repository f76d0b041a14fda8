"""What is installed is what is in the tree."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import geomprobe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def modules() -> dict[str, Path]:
    """Every file that must be installed, by its place in the installed tree."""
    ours = [path for kind in ("*.py", "*.html") for path in (ROOT / "geomprobe").rglob(kind)]
    placed = {f"geomprobe/{path.relative_to(ROOT / 'geomprobe')}": path for path in ours}
    for path in (ROOT / "integrations").rglob("*.py"):
        placed[f"geomprobe/integrations/{path.relative_to(ROOT / 'integrations')}"] = path
    placed["geomprobe/py.typed"] = ROOT / "geomprobe" / "py.typed"
    return {place: path for place, path in placed.items() if "__pycache__" not in place}


def test_every_package_of_the_tree_is_listed(project: dict[str, Any]) -> None:
    packages = {place.removesuffix("/__init__.py").replace("/", ".") for place in modules() if place.endswith("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    folders = {place.rpartition("/")[0].replace("/", ".") for place in modules()}
    assert folders == packages, "a folder of modules has no __init__.py"


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    copy = tmp_path / "source"  # setuptools builds beside the sources
    for source in [*modules().values(), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]:
        target = copy / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    with zipfile.ZipFile(build_wheel(copy, tmp_path)) as wheel:
        held = {member for member in wheel.namelist() if ".dist-info/" not in member}
        records = {member.rpartition("/")[2] for member in wheel.namelist() if ".dist-info/" in member}
        assert held == set(modules())
        assert {"entry_points.txt", "LICENSE"} <= records
        for place, path in modules().items():
            assert wheel.read(place) == path.read_bytes()


def build_wheel(source: Path, target: Path) -> Path:
    """The wheel, built without a network by the setuptools that torch requires."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", str(target), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(target.glob("geomprobe-*.whl"))


def test_the_version_is_one(project: dict[str, Any]) -> None:
    assert geomprobe.__version__ == project["project"]["version"] == metadata.version("geomprobe")
    assert geomprobe.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_tested_versions_satisfy_the_lower_bounds(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    extras = project["project"]["optional-dependencies"]
    needed = [*project["project"]["dependencies"], *(need for needs in extras.values() for need in needs)]
    for need in needed:
        if need.startswith("geomprobe["):
            continue
        name, _, bound = need.partition(">=")
        assert _numbers(tested[name]) >= _numbers(bound), need


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
