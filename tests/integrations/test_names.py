"""The public names, and what importing them costs."""

import subprocess
import sys

import pytest

import geomprobe.integrations


def test_names_are_there_and_others_are_not() -> None:
    assert dir(geomprobe.integrations) == ["ProbeCallback", "WandbSink", "log_reading", "offline_without_login"]
    for name in dir(geomprobe.integrations):
        assert getattr(geomprobe.integrations, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Callback'"):
        getattr(geomprobe.integrations, "Callback")  # noqa: B009


@pytest.mark.slow
def test_other_packages_are_imported_where_they_are_used() -> None:
    code = """
import sys, geomprobe.integrations as integrations
print('torch' in sys.modules)
integrations.WandbSink, integrations.log_reading
print(sorted({'wandb', 'accelerate', 'transformers'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines() == ["False", "[]"]
