"""One language model for every job of a recommender: M6-Rec in JAX."""

__version__ = "0.1.0"
