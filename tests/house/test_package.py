"""What is installed is what is in the tree."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import geomprobe
from tests.house.test_imports import imports, sources
from tests.tiny_models import tiny
from tests.versions import TOOLS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def modules() -> dict[str, Path]:
    """Every file that must be installed, by its place in the installed tree."""
    ours = [path for kind in ("*.py", "*.j2") for path in (ROOT / "geomprobe").rglob(kind)]
    placed = {f"geomprobe/{path.relative_to(ROOT / 'geomprobe')}": path for path in ours}
    for path in (ROOT / "integrations").rglob("*.py"):
        placed[f"geomprobe/integrations/{path.relative_to(ROOT / 'integrations')}"] = path
    placed["geomprobe/py.typed"] = ROOT / "geomprobe" / "py.typed"
    return {place: path for place, path in placed.items() if "__pycache__" not in place}


def test_every_package_of_the_tree_is_listed(project: dict[str, Any]) -> None:
    packages = {place.removesuffix("/__init__.py").replace("/", ".") for place in modules() if place.endswith("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    folders = {place.rpartition("/")[0].replace("/", ".") for place in modules() if place.endswith(".py")}
    assert folders == packages, "a folder of modules has no __init__.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution of a copy of the tree, and the wheel of that: without a network, by torch's own setuptools."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "source"  # setuptools builds beside the sources
    for source in [*modules().values(), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]:
        target = copy / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    command = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run(sys.executable, "-c", command, cwd=copy)
    sdist = next(folder.glob("geomprobe-*.tar.gz"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(sdist))
    return {"sdist": sdist, "wheel": next(folder.glob("geomprobe-*.whl"))}


def run(*command: str, cwd: Path | None = None, path: Path | None = None) -> str:
    """What a command prints; with ``path`` as the first place that Python imports from."""
    environment = os.environ | ({} if path is None else {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"})
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        held = {member for member in wheel.namelist() if ".dist-info/" not in member}
        records = {member.rpartition("/")[2] for member in wheel.namelist() if ".dist-info/" in member}
        assert held == set(modules())
        assert {"entry_points.txt", "LICENSE"} <= records
        for place, path in modules().items():
            assert wheel.read(place) == path.read_bytes()


def test_the_wheel_works_outside_the_tree(built: dict[str, Path], tmp_path: Path) -> None:
    """Installed by itself, away from the sources: the modules import, a probe measures, a page has its template."""
    installed, out = tmp_path / "installed", tmp_path / "out"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(installed), str(built["wheel"]))
    tiny().save_pretrained(tmp_path / "model")
    code = """
        import importlib, pkgutil, sys
        import geomprobe, geomprobe.integrations
        for package in (geomprobe, geomprobe.integrations):
            assert package.__file__.startswith(sys.argv[1]), package.__file__
        names = [info.name for info in pkgutil.walk_packages(geomprobe.__path__, "geomprobe.")]
        for name in names:
            if name != "geomprobe.__main__":
                importlib.import_module(name)
        print(len(names))
        import torch, transformers
        model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2])
        with torch.no_grad(), geomprobe.Probe(model) as probe:
            model(torch.arange(4, 20).unsqueeze(0))
        print(probe.read()["tokens/final_norm"])
    """
    printed = run(
        sys.executable, "-c", textwrap.dedent(code), str(installed), str(tmp_path / "model"), cwd=tmp_path, path=installed
    )
    found = [place for place in modules() if place.endswith(".py")]
    assert printed.split() == [str(len(found) - 1), "16.0"]  # the package itself is not among those that it holds
    run(sys.executable, "-m", "geomprobe", "paper", "fig2", "--out", str(out), cwd=tmp_path, path=installed)
    assert "<svg" in (out / "fig2.html").read_text("utf-8")


def test_the_version_is_one(project: dict[str, Any]) -> None:
    assert geomprobe.__version__ == project["project"]["version"] == metadata.version("geomprobe")
    assert geomprobe.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("folders", [("geomprobe", "integrations"), ("tests", "examples")], ids="+".join)
def test_every_package_that_is_imported_is_declared(project: dict[str, Any], folders: tuple[str, str]) -> None:
    """Whatever a package of ours brings along today, it may drop tomorrow."""
    modules = {module.split(".")[0] for path in sources(*folders) for module, _ in imports(path)}
    imported = packages_of(modules - sys.stdlib_module_names - {"geomprobe", "tests"})
    needed, extras = project["project"]["dependencies"], project["project"]["optional-dependencies"]
    shipped = folders == ("geomprobe", "integrations")
    chosen = [extras[name] for name in extras if not shipped or name not in TOOLS]
    alone = set() if shipped else set(re.findall(r"(\w+)==", (ROOT / ".ci" / "run").read_text("utf-8")))  # beside the extras
    assert imported - {canonical(need.partition(">=")[0]) for needs in (needed, *chosen) for need in needs} == alone
    if shipped:
        assert {canonical(need.partition(">=")[0]) for need in needed} - imported == set()


def packages_of(modules: set[str]) -> set[str]:
    """The names under which the index has these modules: ``scikit-learn`` for ``sklearn``."""
    known = metadata.packages_distributions()
    return {canonical(known.get(module, [module])[0]) for module in modules}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


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
