"""`m6rec compile`: a run's steps, compiled for devices that need not exist."""
