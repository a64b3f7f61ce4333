"""Data set folders: schema, reading, checking, splits, statistics, and the text made of them."""
