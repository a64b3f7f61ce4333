"""The TFDS data set `recommender_text`: what `m6rec data prepare` writes.

A package of its own, because TFDS looks for `NAME/NAME_dataset_builder.py`. Importing it imports
nothing; the builder module needs tensorflow_datasets.
"""
