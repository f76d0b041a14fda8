"""The house rules: imports point one way, hooks live in one place, and what is dear to import is imported where it is used."""

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import geomprobe

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("transformers", "accelerate", "wandb", "sklearn", "plotly", "typer", "pandas", "scipy")

# What each part may import of geomprobe besides itself. Modules not named here stand on top of these.
LOWER = {
    "errors": set[str](),
    "core": {"errors"},
    "theory": {"errors"},
    "files": {"errors"},
    "runs": {"capture", "core", "errors", "files", "ledger", "loading", "metrics", "probe", "reading"},
    "report": {"errors", "metrics", "reading", "runs", "theory"},
    "metrics": {"core", "errors"},
    "capture": {"core", "errors"},
    "schedule": {"errors"},
    "reading": {"core", "metrics", "errors"},
    "distributed": {"core", "errors"},
    "ledger": {"capture", "core", "distributed", "errors"},
    "gather": {"capture", "core", "ledger"},
    "live": {"capture", "core", "errors"},
    "probe": {"capture", "core", "distributed", "errors", "gather", "ledger", "live", "metrics", "reading", "schedule"},
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every ``(module, name)`` that a file imports, anywhere in it; ``name`` is empty for ``import module``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def part(module: str, name: str) -> str:
    """The part of the house a ``geomprobe`` import reaches: ``core``, ``probe`` …, or ``""`` for the package's own names."""
    if module == "geomprobe":
        return name if (ROOT / "geomprobe" / name).exists() or (ROOT / "geomprobe" / f"{name}.py").exists() else ""
    return module.split(".")[1]


def ours(path: Path) -> list[tuple[str, str]]:
    return [(module, name) for module, name in imports(path) if module.split(".")[0] == "geomprobe"]


@pytest.mark.parametrize("path", sources("geomprobe"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = path.relative_to(ROOT / "geomprobe").parts[0].removesuffix(".py")
    reached = {part(module, name) for module, name in ours(path)}
    assert "tests" not in {module.split(".")[0] for module, _ in imports(path)}
    if here in LOWER:
        assert reached <= LOWER[here] | {here}
    elif here == "__init__":  # names its public classes for type checkers, and executes nothing
        assert reached <= set(LOWER)


def test_the_parts_that_imports_are_held_to_exist() -> None:
    assert {path.name.removesuffix(".py") for path in (ROOT / "geomprobe").iterdir()} >= set(LOWER)


@pytest.mark.parametrize("path", sources("integrations"), ids=lambda path: path.name)
def test_integrations_use_public_names_only(path: Path) -> None:
    for module, name in ours(path):
        assert module.startswith("geomprobe.integrations") or (module == "geomprobe" and name in geomprobe.__all__), (
            module,
            name,
        )


@pytest.mark.parametrize("path", sources("examples"), ids=lambda path: path.name)
def test_examples_use_public_names_and_the_core(path: Path) -> None:
    for module, name in ours(path):
        public = import_module(module).__all__
        assert name in public, (module, name)
        assert module in ("geomprobe", "geomprobe.integrations") or module.startswith("geomprobe.core."), module


def test_only_capture_registers_hooks() -> None:
    calls = {
        path.relative_to(ROOT).parts[:2]
        for path in sources("geomprobe", "integrations")
        if path.name != "bench.py"  # one of its peers is a set of hooks that keep everything
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and "hook" in node.attr
    }
    assert calls == {("geomprobe", "capture")}


@pytest.mark.parametrize("package", ["geomprobe", "geomprobe.integrations"])
def test_public_names_are_all_there(package: str) -> None:
    module = import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert dir(module) == module.__all__
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Nothing'"):
        _ = module.Nothing


# -- what an import costs ---------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[str, float]:
    """Output of a fresh Python, and the processor time it took in seconds (wall time on a shared machine says little)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported_by(code: str, *names: str) -> list[str]:
    output, _ = run("-c", f"{code}\nimport sys, json; print(json.dumps([n for n in {names!r} if n in sys.modules]))")
    imported: list[str] = json.loads(output.splitlines()[-1])
    return imported


def test_importing_geomprobe_imports_nothing() -> None:
    assert imported_by("import geomprobe", "torch", "numpy", *HEAVY) == []
    assert imported_by("import geomprobe.integrations", "torch", "numpy", *HEAVY) == []


def test_every_public_name_costs_torch_and_no_more() -> None:
    assert imported_by("from geomprobe import *", "torch", *HEAVY) == ["torch"]


def test_import_takes_at_most_a_tenth_longer_than_torch() -> None:
    """Both are timed in one process, one after the other, so that what slows the one slows the other."""
    clock = "from time import process_time as now; start = now(); "
    to_probe = (
        clock
        + "import torch; torch_alone = now() - start; import geomprobe; geomprobe.Probe; print((now() - start) / torch_alone)"
    )
    probe = min(float(run("-c", to_probe)[0]) for _ in range(4))
    bare = min(run("-c", "import geomprobe")[1] for _ in range(2)) / run("-c", "import torch")[1]
    print(f"of the time of import torch: import geomprobe {bare:.3f}, to geomprobe.Probe {probe:.3f}")
    assert probe <= 1.1
    assert bare <= 1.1


def test_help_answers_at_once_and_without_torch() -> None:
    code = "import sys, geomprobe.cli; sys.argv = ['geomprobe', '--help']\ntry: geomprobe.cli.main()\nexcept SystemExit: pass"
    assert imported_by(code, "torch", "transformers", "wandb", "numpy") == []
    output, _ = run("-m", "geomprobe", "--help")
    assert "demo" in output
    assert "inspect" in output
    assert min(run("-m", "geomprobe", "--help")[1] for _ in range(3)) <= 0.5
