"""Tasks of any data set of yours by its name: gin in place of a module of your own.

    import tasks.own_data

    MIXTURE_OR_TASK_NAME = @own_task()
    own_task.dataset = 'corner-shop'
    own_task.kind = 'retrieval'
    own_task.split = 'leave_one_out'

registers what `register_recommendation_tasks` does and names one of them,
`corner_shop_leave_one_out_retrieval`. Of the default split the names go without it.
gin_configs/data/any sets all of that but the data set.
"""

import re

import gin
import seqio

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.locations import DEFAULT_SPLIT
from m6rec_jax.pipeline.registration import register_recommendation_tasks

# Beginnings of names, and the data set and split that they are of.
_registered: dict[str, tuple[str, str]] = {}


@gin.configurable
def own_task(
    dataset: str = gin.REQUIRED,
    kind: str = gin.REQUIRED,
    split: str = DEFAULT_SPLIT,
    vocabulary_split: str | None = None,
) -> str:
    """The name of a task or mixture of a prepared data set; registers them all the first time.

    Args:
      dataset: as in its dataset.json.
      kind: what `pipeline.registration` has: 'ctr', 'retrieval', 'pretrain', ...; 'foundation' goes
        without outcomes where the data have none to tell apart.
      split: name of the prepared split.
      vocabulary_split: beside which split the vocabulary lies; None: `split`.

    Raises:
      ConfigError: no such kind, or another data set has tasks of these names.
      DataError: 'foundation' of data that are not prepared.
    """
    prefix = re.sub(r"\W", "_", dataset if split == DEFAULT_SPLIT else f"{dataset}_{split}")
    if _registered.setdefault(prefix, (dataset, split)) != (dataset, split):
        raise ConfigError(
            f"the tasks of {dataset!r}, split {split!r}, would be called as those of "
            f"{' '.join(_registered[prefix])}, {prefix}_...: call one of the data sets otherwise"
        )
    if f"{prefix}_infilling" not in seqio.TaskRegistry.names():
        register_recommendation_tasks(
            prefix, dataset=dataset, split=split, vocabulary_split=vocabulary_split
        )
    names = (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names())
    kinds = [name.removeprefix(f"{prefix}_") for name in names if name.startswith(f"{prefix}_")]
    if kind not in kinds:
        raise ConfigError(
            f"own_task.kind = {kind!r} is no kind of task{did_you_mean(kind, kinds)} (known: "
            f"{', '.join(kinds)})"
        )
    if kind == "foundation" and not locations.prepared(dataset, split).outcome_words():
        kind = "foundation_without_outcomes"
    return f"{prefix}_{kind}"
