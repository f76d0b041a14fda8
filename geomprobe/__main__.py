"""Run the command line as ``python -m geomprobe``, also under ``accelerate launch -m geomprobe``."""

from geomprobe.cli.main import main

main()
