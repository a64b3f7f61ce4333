"""Which events train, validate and test, and what a row may see."""
