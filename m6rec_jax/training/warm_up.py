"""Whether a run is long enough for its warm-up, which is told before jax is imported."""

from __future__ import annotations

from m6rec_jax.errors import ConfigError

# Decays that end with the run.
ENDING = ("linear", "cosine")


def check_warm_up(decay: str, warmup_steps: int, total_steps: int) -> None:
    """Raises ConfigError where nothing is left for a decay that ends with the run."""
    if decay in ENDING and total_steps <= warmup_steps:
        raise ConfigError(
            f"TRAIN_STEPS = {total_steps} must exceed WARMUP_STEPS = {warmup_steps} (total_steps "
            "and warmup_steps of warmup_schedule): train longer, or set "
            f"--gin.WARMUP_STEPS={total_steps // 10}"
        )
