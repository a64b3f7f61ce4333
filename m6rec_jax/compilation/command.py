"""`m6rec compile`: asks XLA whether a run's steps compile for a slice, and fit its memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import jax

from m6rec_jax import configuration
from m6rec_jax.compilation.report import compile_step
from m6rec_jax.compilation.steps import STEPS, StepSettings, make_program, missing_steps
from m6rec_jax.compilation.topologies import Topology
from m6rec_jax.errors import ConfigError
from m6rec_jax.sharding import make_mesh

logger = logging.getLogger(__name__)


def compile_run(
    topology: Topology | None,
    *,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    steps: Sequence[str] = (),
) -> bool:
    """Compiles a run's steps, and prints what is known of each.

    Args:
      topology: slices that need not exist; None: the devices of this machine.
      gin_files, bindings: as for `m6rec train`.
      steps: of `STEPS`; none: all that the model has.

    Returns:
      Whether all compile and fit.

    Raises:
      ConfigError: libtpu is missing, no such slice or step, or settings that do not fit.
    """
    if unknown := [step for step in steps if step not in STEPS]:
        raise ConfigError(f"--steps {','.join(unknown)}: known are {', '.join(STEPS)}")
    if not gin_files:
        raise ConfigError("m6rec compile needs --model NAME or --gin_file FILE")
    configuration.parse_config(["gin_configs/commands/compile.gin", *gin_files], bindings)
    settings = StepSettings()
    missing = missing_steps(settings.config)
    if absent := [step for step in steps if step in missing]:
        raise ConfigError(f"--steps {absent[0]}: {missing[absent[0]]}")
    mesh = make_mesh(devices=None if topology is None else topology.devices())
    source, target = settings.lengths
    print(
        f"{topology or 'this machine'}: devices {mesh.size} "
        f"({', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}); "
        f"{settings.rows(mesh)} rows of {source} + {target} tokens; trains {settings.trainable}"
    )
    available = _local_memory() if topology is None else topology.chip.hbm_bytes
    fits = True
    for step in steps or STEPS:
        if step in missing:
            print(f"\n{step}: not compiled, {missing[step]}")
            continue
        logger.info("compiling %s, which may take minutes", step)
        report = compile_step(step, make_program(step, settings, mesh), available)
        print(f"\n{report.render()}", flush=True)
        fits &= report.fits
    return fits


def _local_memory() -> int | None:
    """Bytes of a local device's memory that programs may use; None: unknown, as of a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
