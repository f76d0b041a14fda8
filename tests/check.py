"""``python -m tests.check``: format, lint, types, tests with doctests. What continuous integration runs."""

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
    failed = [step for step in STEPS if subprocess.run([sys.executable, "-m", *step], check=False).returncode]
    for step in failed:
        print("failed:", *step, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
