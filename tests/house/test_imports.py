"""The house rules: imports point one way, hooks live in one place, and what is dear to import is imported where it is used."""

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import geomprobe

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("transformers", "accelerate", "wandb", "sklearn", "plotly", "typer", "pandas", "scipy")

# What each part of the package may import of the others; every part may import those in COMMON. A part without a line fails.
MAY_IMPORT = {
    "core": set[str](),
    "theory": set[str](),
    "models": set[str](),
    "accumulators": {"core"},
    "metrics": {"accumulators", "core"},
    "capture": {"core"},
    "protocols": {"metrics"},
    "reading": {"accumulators", "metrics"},
    "monitoring": {"reading"},
    "recording": {"accumulators", "capture", "core"},
    "probe": {"accumulators", "capture", "core", "metrics", "reading", "recording"},
    "inspection": {"capture", "core", "metrics", "models", "probe", "reading", "report"},
    "sweeps": {"accumulators", "capture", "core", "metrics", "models", "probe", "protocols", "reading", "recording"},
    "report": {"integrations", "metrics", "monitoring", "protocols", "reading", "sweeps", "theory"},
    "integrations": {"", "core"},  # public names only, formulas, files and schedules
    "tracking": {"inspection", "integrations", "metrics", "models", "probe", "reading", "report", "sweeps"},
    "paper": {"capture", "core", "inspection", "models", "report", "sweeps", "theory"},
    "bench": {"capture", "core", "metrics", "models", "monitoring", "probe", "reading", "recording", "sweeps"},
    "cli": {"bench", "inspection", "integrations", "models", "paper", "reading", "report", "sweeps", "tracking"},
    "__main__": {"cli"},
}
COMMON = {"errors", "files", "schedule"}


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


def home(path: Path) -> str:
    """The part that a file belongs to."""
    return "integrations" if path.is_relative_to(ROOT / "integrations") else part(module_of(path), "")


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = sources("geomprobe", "integrations")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_those_of_the_table(path: Path) -> None:
    here, reached = home(path), {part(module, name) for module, name in ours(path)}
    assert "tests" not in {module.split(".")[0] for module, _ in imports(path)}
    if here == "__init__":  # names the public classes for type checkers, and executes nothing
        return
    assert here in {*MAY_IMPORT, *COMMON}, f"{here} has no line in the table"
    assert reached <= MAY_IMPORT.get(here, set()) | COMMON | {here}


def test_the_table_has_no_line_too_many_and_no_circle() -> None:
    assert {home(path) for path in SOURCES} == {*MAY_IMPORT, *COMMON, "__init__"}
    # A package's own names are Probe, Reading, the metrics and sweep.
    TopologicalSorter({here: {"sweeps" if there == "" else there for there in to} for here, to in MAY_IMPORT.items()}).prepare()
    used = {(home(path), part(module, name)) for path in SOURCES for module, name in ours(path)}
    idle = {(here, there) for here, to in MAY_IMPORT.items() for there in to} - used
    assert not idle, "the table allows what nobody does"


def test_no_circle_among_files() -> None:
    files = {module_of(path).removesuffix(".__init__"): path for path in sources("geomprobe")}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for module, imported in ours(path):
            found = f"{module}.{imported}" if f"{module}.{imported}" in files else module
            if found in files and found not in ("geomprobe", name):
                graph[name].add(found)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_the_root_holds_what_a_user_imports() -> None:
    assert len({path.stem for path in (ROOT / "geomprobe").glob("*.py")} - {"__init__", "__main__"}) <= 7


def test_every_folder_tells_what_lives_there() -> None:
    folders = {path.parent for path in SOURCES} - {ROOT / "geomprobe"}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "README.md").is_file()]


@pytest.mark.parametrize("path", sources("integrations"), ids=lambda path: path.name)
def test_integrations_use_public_names_formulas_files_and_schedules_only(path: Path) -> None:
    for module, name in ours(path):
        assert (
            module.startswith("geomprobe.integrations")
            or (module == "geomprobe" and name in geomprobe.__all__)
            or module in ("geomprobe.files", "geomprobe.schedule")
            or module.startswith("geomprobe.core.")
        ), (
            module,
            name,
        )


@pytest.mark.parametrize("path", sources("examples"), ids=lambda path: path.name)
def test_examples_use_public_names_and_the_core(path: Path) -> None:
    for module, name in ours(path):
        public = import_module(module).__all__
        assert name in public, (module, name)
        assert module in ("geomprobe", "geomprobe.integrations") or module.startswith(
            ("geomprobe.core.", "geomprobe.accumulators.")
        ), module


def test_only_capture_registers_hooks() -> None:
    calls = {
        path.relative_to(ROOT).parts[:2]
        for path in sources("geomprobe", "integrations")
        if path.parent != ROOT / "geomprobe" / "bench"  # which has peers and faults that are hooks
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


@pytest.mark.slow
def test_importing_geomprobe_imports_nothing() -> None:
    assert imported_by("import geomprobe", "torch", "numpy", *HEAVY) == []
    assert imported_by("import geomprobe.integrations", "torch", "numpy", *HEAVY) == []


@pytest.mark.slow
def test_every_public_name_costs_torch_and_no_more() -> None:
    assert imported_by("from geomprobe import *", "torch", *HEAVY) == ["torch"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_help_answers_at_once_and_without_torch() -> None:
    code = "import sys; from geomprobe.cli.main import main; sys.argv = ['geomprobe', '--help']"
    code += "\ntry: main()\nexcept SystemExit: pass"
    assert imported_by(code, "torch", "transformers", "wandb", "numpy") == []
    output, _ = run("-m", "geomprobe", "--help")
    assert "demo" in output
    assert "inspect" in output
    assert min(run("-m", "geomprobe", "--help")[1] for _ in range(3)) <= 0.5
