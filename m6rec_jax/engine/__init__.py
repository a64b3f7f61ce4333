"""Using a model: numbers for `candidates`, `decoding` of texts, the `index` of a catalogue.

No seqio, no tensorflow, so that a server is light. Import the module you need (`from
m6rec_jax.engine.candidates import scoring`).
"""
