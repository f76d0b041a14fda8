"""``python -m tests.check``: format, lint, types, tests with doctests. What continuous integration runs.

With ``--quick`` the tests marked ``slow`` are left out: an inner loop of less than two minutes.
"""

import argparse
import subprocess
import sys

STEPS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("pytest", "-q", "--durations=10"),
)


def main() -> int:
    """Run every step, also after one failed, so that one run shows all there is to mend."""
    parser = argparse.ArgumentParser(prog="python -m tests.check", description="Format, lint, types, and tests with doctests.")
    parser.add_argument("--quick", action="store_true", help="leave out the tests marked slow")
    quick = ("-m", "not slow") if parser.parse_args().quick else ()
    steps = [(*step, *quick) if step[0] == "pytest" else step for step in STEPS]
    failed = [step for step in steps if subprocess.run([sys.executable, "-m", *step], check=False).returncode]
    for step in failed:
        print("failed:", *step, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
