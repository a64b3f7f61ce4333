"""The folder of a data set: `dataset.json`, its tables, their checks, what is rejected."""
