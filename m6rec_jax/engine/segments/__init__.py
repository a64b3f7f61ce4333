"""Late interaction: states of the early layers, on the device, in a cache and on disk."""
