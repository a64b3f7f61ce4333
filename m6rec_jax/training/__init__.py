"""Training: options, state, optimizers, the jitted step, the loop, resuming.

    from m6rec_jax.training.loop import train

The loop is `train`, configured in gin (see `gin_configs/recipes/`). What a run leaves in MODEL_DIR:
`config.gin`, `checkpoints/`, `metrics.jsonl`, TensorBoard files.
"""
