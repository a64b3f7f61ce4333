"""What `t5x.infer` in 'score' mode, and exported models, compute for a batch of rows.

Which scores there are is said by the jobs of the mixture's tasks (`jobs.job.Job.scores`). Beside
them stand `decoder_labels` and `decoder_item_ids` `[rows, target]` and `user_ids` `[rows, 1]`,
which tell what each score is of.
"""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.job import Array, Features, Variables, job_of
from m6rec_jax.model import M6Rec

IDENTITY = ("decoder_labels", "decoder_item_ids", "user_ids")


def scores(
    model: M6Rec, variables: Variables, features: Features, kinds: Collection[str]
) -> dict[str, Array]:
    """Scores of a batch; for use inside jit.

    Args:
      model, variables: the model.
      features: the batch.
      kinds: of the tasks that rows are of.

    Raises:
      ConfigError: none of them has scores (all write texts, or recommend in a dialogue).
    """
    jobs = [job for job in map(job_of, sorted(kinds)) if job.has_scores]
    if not jobs:
        raise ConfigError(
            f"tasks of the kind {' or '.join(sorted(kinds))} have no scores in t5x: set MODE = "
            "'predict' for texts, or use `m6rec eval` and `m6rec infer`"
        )
    found = {name: jnp.asarray(features[name]) for name in IDENTITY}
    for job in jobs:
        found |= job.scores(model, variables, features)
    return found
