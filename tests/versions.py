"""``python -m tests.versions [SET …]``: the tests under other versions of the packages that geomprobe builds on.

A set is ``lowest`` (the floors of ``pyproject.toml``), ``between``, ``newest`` (``constraints.txt``), or ``PACKAGE==VERSION``:
the newest set, but for that package and what it needs. Without a name, the first three run. ``latest`` is what the index
serves today, torch aside; with ``--latest`` its failures are shown, and do not count.

Each set has a virtual environment of its own, which holds only what differs from the environment that runs this command. The
rest of that environment stands behind it on the path: torch above all, which is never installed again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import tomllib
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.check import PROCESSES, THREADS

__all__ = ["BETWEEN", "TOOLS", "Outcome", "floors", "main", "needs", "pins", "table"]

ROOT = Path(__file__).resolve().parents[1]

BETWEEN = {  # about what trainers pinned half way between the lowest and the newest Transformers
    "transformers": "5.15.1",
    "accelerate": "1.13.0",
    "numpy": "2.2.6",
    "scipy": "1.15.3",
    "scikit-learn": "1.7.2",
    "wandb": "0.27.2",
    "typer": "0.22.0",
    "plotly": "6.3.1",
    "matplotlib": "3.10.0",
    "filelock": "3.25.0",
    "huggingface_hub": "1.15.0",
    "pandas": "2.3.3",
}

TESTS: tuple[str, ...] = (
    "tests",
    "geomprobe",
    "integrations",
    "--ignore=tests/house",
    "--ignore=tests/hosts",
    "--ignore=tests/faults",
)
TESTS += ("--ignore=tests/cli/test_console.py",)
"""What every set runs, but for slow tests: all but the tests of the tree itself, of programs with versions of their own, and of
what is said in the words of Typer and of other libraries, which are those of the newest versions."""

SLOW = ("tests/capture", "tests/integrations", "tests/tracking", "tests/models")
"""Where slow tests run as well: those of W&B's processes, of Trainer, of compiled graphs, and of quantised models."""

TOOLS = ("test", "hosts")
"""Extras that only tests need. Every set uses those that are installed, whatever else they ask for."""


@dataclass(frozen=True)
class Outcome:
    """The result of the tests under one set.

    Attributes:
        name: name of the set.
        versions: version of every package that geomprobe names, as the set's Python finds them.
        passed: number of tests that passed.
        failed: number of tests that failed; 1 if the set could not be installed, or the tests did not run.
        skipped: number of tests that were skipped.
        seconds: wall time of the tests.
        gates: whether a failure of this set is a failure of the command.
    """

    name: str
    versions: dict[str, str]
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    gates: bool = True


def project() -> dict[str, Any]:
    """The table ``project`` of ``pyproject.toml``."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def needs() -> list[str]:
    """What geomprobe and its extras need at run time, such as ``numpy>=1.26``."""
    extras = project()["optional-dependencies"]
    return [*project()["dependencies"], *(need for name, extra in extras.items() if name not in TOOLS for need in extra)]


def floors() -> dict[str, str]:
    """The lowest version of every package that geomprobe needs, torch aside."""
    bounds = dict(need.split(">=") for need in needs())
    del bounds["torch"]
    return bounds


def pins(name: str) -> dict[str, str]:
    """The versions that a set asks for; of other packages it takes what is installed.

    Raises:
        SystemExit: if there is no set of this name.
    """
    if name == "lowest":
        return floors()
    if name == "between":
        return BETWEEN
    if name == "newest":
        lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        return dict(line.split("==") for line in lines if "==" in line and not line.startswith("torch=="))
    if name == "latest":
        return {}
    if re.fullmatch(r"[\w.-]+==[\w.]+", name):
        return dict([name.split("==")])
    sys.exit(f"tests.versions: no set is called {name!r}: expected lowest, between, newest, latest or PACKAGE==VERSION")


def build(name: str, folder: Path) -> Path:
    """Make the virtual environment of a set, unless it is there already, and return its Python.

    Raises:
        subprocess.CalledProcessError: if pip cannot install these versions side by side.
    """
    python, mark = folder / "bin" / "python", folder / "made-of.json"
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    wanted = pins(name) | {"torch": metadata.version("torch")}
    made_of = json.dumps([sys.version, str(ROOT), shared, project(), wanted], indent=1)
    if name != "latest" and mark.exists() and mark.read_text("utf-8") == made_of:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text("\n".join(shared), "utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{package}=={version}\n" for package, version in wanted.items()), "utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "-c", str(constraints)]
    command += ["--upgrade", "--upgrade-strategy", "eager"] if name == "latest" else []
    extras = ",".join(name for name in project()["optional-dependencies"] if name not in TOOLS)
    # setuptools stands behind on the path: an isolated build would fetch one of its own.
    subprocess.run([*command, "--no-build-isolation", "-e", f"{ROOT}[{extras}]"], check=True)
    mark.write_text(made_of, "utf-8")
    return python


def versions(python: Path) -> dict[str, str]:
    """The versions that a Python finds of the packages that geomprobe needs."""
    names = [need.split(">=")[0] for need in needs()]
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return found


def run(name: str, folder: Path, options: list[str], *, gates: bool = True) -> Outcome:
    """Build a set and run the tests in it."""
    print(f"\n== {name}: {folder}", flush=True)
    try:
        python = build(name, folder)
    except subprocess.CalledProcessError:
        return Outcome(name, {}, failed=1, gates=gates)
    found = versions(python)
    print("\n".join(_listed(found)), flush=True)
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failed, start = 0, time.monotonic()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
    environment = threads | os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    runs = [options] if options else [["-m", "not slow", *TESTS], ["-m", "slow", *SLOW]]
    for number, selected in enumerate(runs):
        report = folder / f"tests-{number}.xml"
        report.unlink(missing_ok=True)
        command = [str(python), "-m", "pytest", "-q", "--disable-warnings", "-n", str(PROCESSES), "--dist", "loadfile"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={report}", *selected]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        failed += done.returncode != 0
        if report.exists():
            for suite in ElementTree.parse(report).iter("testsuite"):
                counts = {key: counts[key] + int(suite.get(key, 0)) for key in counts}
    broken = counts["failures"] + counts["errors"]
    passed = counts["tests"] - broken - counts["skipped"]
    return Outcome(name, found, passed, max(broken, failed), counts["skipped"], time.monotonic() - start, gates)


def _listed(found: dict[str, str]) -> list[str]:
    """Versions in lines of 80 columns."""
    return textwrap.wrap(", ".join(f"{name}\u00a0{version}" for name, version in found.items()), 78)


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a table of 80 columns, with the versions of each set below it."""
    shown = ("transformers", "numpy", "wandb")
    head = f"{'set':<22}" + "".join(f"{name:>13}" for name in shown[:1]) + "".join(f"{name:>8}" for name in shown[1:])
    lines = [head + f"{'passed':>8}{'failed':>7}{'skipped':>8}{'s':>6}"]
    for outcome in outcomes:
        first, *others = (outcome.versions.get(name, "–") for name in shown)
        lines.append(
            f"{outcome.name:<22}{first:>13}"
            + "".join(f"{version:>8}" for version in others)
            + f"{outcome.passed:>8}{outcome.failed:>7}{outcome.skipped:>8}{outcome.seconds:>6.0f}"
        )
    for outcome in outcomes:
        lines += ["", f"{outcome.name}:", *(f"  {line}" for line in _listed(outcome.versions) or ["not installed"])]
    return "\n".join(lines)


def main() -> int:
    """Run the sets, and print the table. The exit code is 1 if a set that gates has a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description="Run the tests under other versions.")
    parser.add_argument(
        "sets",
        nargs="*",
        metavar="SET",
        help="lowest, between, newest (default: these three), latest or PACKAGE==VERSION",
    )
    parser.add_argument("--latest", action="store_true", help="also what the index serves today; its failures do not count")
    parser.add_argument(
        "--venvs",
        type=Path,
        default=os.environ.get("GEOMPROBE_VERSIONS") or ROOT / ".versions",
        help="folder of the environments",
    )
    parser.add_argument("--tests", default="", help="arguments for pytest, in place of the usual tests")
    given = parser.parse_args()
    names = given.sets or ([] if given.latest else ["lowest", "between", "newest"])
    shown = ["latest"] * given.latest  # and does not count
    for name in names:
        pins(name)  # a name that is none is told before anything is built
    folder, options = Path(given.venvs).resolve(), given.tests.split()
    outcomes = [run(name, folder / name, options) for name in names]
    outcomes += [run(name, folder / name, options, gates=False) for name in shown]
    print(f"\n{table(outcomes)}")
    return int(any(outcome.failed for outcome in outcomes if outcome.gates))


if __name__ == "__main__":
    sys.exit(main())
