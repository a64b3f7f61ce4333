"""seqio tasks to batches of model features. The only package that imports seqio (with `tasks/`)."""
