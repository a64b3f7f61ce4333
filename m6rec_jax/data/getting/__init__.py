"""Ways to get a data set: drafts of `dataset.json`, imports, public data."""
