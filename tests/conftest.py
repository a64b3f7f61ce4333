"""What holds for every test: fast compiling, gin without what another module bound, order."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gin
import pytest
from hypothesis import settings

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
# Each program is compiled once for all workers, and for all processes that tests start; workers
# have the folder from the first process, which removes it. A folder that is given is kept.
PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="m6rec_programs_")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Examples take as long as the machine's other work lets them.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Imported after this file, so after the flags.
pytest_plugins = ["tests.serving.fixtures"]


def pytest_unconfigure() -> None:
    if PROGRAMS is not None:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def no_bindings_of_other_modules() -> Iterator[None]:
    """A worker runs many modules; what one binds by gin must not configure models of the next."""
    gin.clear_config()
    yield
    gin.clear_config()


# Their files have few tests that take long; at the end of a run one worker would be left with them.
# The first two need no shop, which one worker makes and the others of `integration` wait for.
FIRST = (
    *("integration/test_quickstart", "integration/test_several_processes", "integration"),
    *("training", "server", "serving", "engine", "export", "compilation", "sharding"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, in the order of `FIRST` (with `--no-loadscope-reorder`), then the rest."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        begun = (index for index, prefix in enumerate(FIRST) if path.startswith(prefix))
        return next(begun, len(FIRST))

    items.sort(key=place)
