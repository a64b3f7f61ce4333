"""Set before jax is imported: programs in tests run once, so compiling fast matters most."""

import os

# Halves the time of the suite, most of which is XLA compiling. Numerics stay within the tests'
# tolerances; a run that sets XLA_FLAGS itself keeps them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
