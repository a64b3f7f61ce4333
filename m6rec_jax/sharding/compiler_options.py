"""XLA's compiler options by platform, for the training step and `m6rec compile`. In gin:

from m6rec_jax.sharding import compiler_options

compiler_options.tpu = {'xla_tpu_enable_latency_hiding_scheduler': True}
"""

from __future__ import annotations

from collections.abc import Mapping

import gin

Options = Mapping[str, bool | int | float | str]


@gin.configurable(denylist=["platform"])
def compiler_options(
    platform: str, *, tpu: Options | None = None
) -> dict[str, bool | int | float | str]:
    """Options for `jax.stages.Lowered.compile(compiler_options=...)` on a platform."""
    return dict(tpu or {}) if platform == "tpu" else {}
