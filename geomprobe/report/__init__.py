"""Reports: self-contained HTML pages of sweeps and of single texts."""
