"""``python -m tests.check``: format, lint, types, tests with doctests. What continuous integration runs.

With ``--quick`` the tests marked ``slow`` are left out: an inner loop of less than two minutes.

The tests run in several processes of one thread each, because two threads in each of two processes slow each other down many
times. ``OMP_NUM_THREADS=2 python -m tests.check`` runs them in fewer processes of two threads each.
"""

import argparse
import os
import subprocess
import sys

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
PROCESSES = max(1, min(4, (os.cpu_count() or 1) // THREADS))  # each may hold a model of 135 million parameters

STEPS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("pytest", "-q", "--durations=10", "-n", str(PROCESSES), "--dist", "loadfile"),
)


def main() -> int:
    """Run every step, also after one failed, so that one run shows all there is to mend."""
    parser = argparse.ArgumentParser(prog="python -m tests.check", description="Format, lint, types, and tests with doctests.")
    parser.add_argument("--quick", action="store_true", help="leave out the tests marked slow")
    quick = ("-m", "not slow") if parser.parse_args().quick else ()
    steps = [(*step, *quick) if step[0] == "pytest" else step for step in STEPS]
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = threads | os.environ
    failed = [step for step in steps if subprocess.run([sys.executable, "-m", *step], env=environment, check=False).returncode]
    for step in failed:
        print("failed:", *step, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
