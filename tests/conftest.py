"""What holds for every test: fast compiling, and gin without what another module bound."""

import os
from collections.abc import Iterator

import gin
import pytest

# Set before jax is imported: programs in tests run once, so compiling fast matters most. Each of
# these takes time out of it: no LLVM optimisation, no MLIR emitter per fusion (a quarter of the
# time is left), one module instead of dozens. Numerics stay within the tests' tolerances; a run
# that sets XLA_FLAGS itself keeps them. XLA ends the process over a flag that it does not know, so
# one that a later JAX drops has to go here, too.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(autouse=True, scope="module")
def no_bindings_of_other_modules() -> Iterator[None]:
    """A worker runs many modules; what one binds by gin must not configure models of the next."""
    gin.clear_config()
    yield
    gin.clear_config()
