"""Trained models in formats that need no m6rec_jax: `m6rec export`."""
