"""Set before jax is imported: programs in tests run once, so compiling fast matters most."""

import os

# Each of these takes time out of compiling: no LLVM optimisation, no MLIR emitter per fusion (a
# quarter of the time is left), one module instead of dozens. Numerics stay within the tests'
# tolerances; a run that sets XLA_FLAGS itself keeps them. XLA ends the process over a flag that it
# does not know, so one that a later JAX drops has to go here, too.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
