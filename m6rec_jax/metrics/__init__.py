"""Ranking, classification and language metrics over numpy arrays. No jax, no tensorflow."""
