"""Files, folders, locks, hashes and progress bars: what every other layer may use."""
