"""What XLA's compiler is told beside the program, by platform.

In gin:

    from m6rec_jax.sharding import compiler_options

    compiler_options.tpu = {'xla_tpu_enable_latency_hiding_scheduler': True}

The training step is compiled with them, and so is what `m6rec compile` reports on.
"""

from __future__ import annotations

from collections.abc import Mapping

import gin

Options = Mapping[str, bool | int | float | str]


@gin.configurable(denylist=["platform"])
def compiler_options(
    platform: str, *, tpu: Options | None = None, gpu: Options | None = None
) -> dict[str, bool | int | float | str]:
    """Options for `jax.stages.Lowered.compile(compiler_options=...)`.

    Args:
      platform: of the devices: 'tpu', 'gpu', 'cuda', 'cpu', ...
      tpu, gpu: options of XLA for these; other platforms get none.
    """
    options = {"tpu": tpu, "gpu": gpu, "cuda": gpu}.get(platform)
    return dict(options or {})
