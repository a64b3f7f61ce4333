"""Records become segments of text, text becomes tokens, tokens become rows.

Training and serving run exactly this code, so a row scored on a phone is laid out like the row the
model was trained on. Nothing here imports jax or tensorflow, and this module imports nothing at
all: name the module you need (`from m6rec_jax.text import rows`).
"""
