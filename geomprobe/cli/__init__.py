"""The command line of geomprobe, with one function for each command."""
