"""Using a model: scores, retrieval, generation, likelihood.

No seqio, no tensorflow, so that a server is light. Import the module you need (`from
m6rec_jax.engine import scoring`).
"""
