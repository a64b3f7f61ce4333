"""Programs of engines in this process."""

import gc

from m6rec_jax.engine.programs.kept_programs import KeptProgram


def num_traced() -> int:
    """How many there are, each of other shapes."""
    programs = [one for one in gc.get_objects() if isinstance(one, KeptProgram)]
    return sum(one._jitted._cache_size() + len(one._compiled) for one in programs)
