"""A loaded bank as a `Bundle`: `m6rec infer`, `index build` and `chat` answer requests with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
from jax.sharding import Mesh

from m6rec_jax.bank.loaded import LoadedBank
from m6rec_jax.bank.loading import load_bank
from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.location import locate
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.bundle import Bundle, InferenceSettings, digest, load_model
from m6rec_jax.engine.generation import Generator
from m6rec_jax.engine.likelihood_scoring import LikelihoodScorer
from m6rec_jax.engine.retrieval import Retriever
from m6rec_jax.engine.scoring import Scorer
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.sharding import LogicalRules


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BankBundle(Bundle):
    """The tasks of a loaded bank; they may come and go.

    Attributes:
      bank: whose tasks they are.
    """

    bank: LoadedBank

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """See `Bundle.dataset_spec`; every task of a bank has its own."""
        return self.bank.dataset_spec(task_name(self.settings.tasks, task))

    saved_dataset_spec = dataset_spec

    def scorer(self, task: str = "", **changes: Any) -> Scorer:
        """See `Bundle.scorer`."""
        return self.bank.scorer(task_name(self.settings.tasks, task), **changes)

    def retriever(self, task: str = "", **changes: Any) -> Retriever:
        """See `Bundle.retriever`."""
        return self.bank.retriever(task_name(self.settings.tasks, task), **changes)

    def generator(self, task: str = "", **changes: Any) -> Generator:
        """See `Bundle.generator`."""
        return self.bank.generator(task_name(self.settings.tasks, task), **changes)

    def likelihood_scorer(self, task: str = "", **changes: Any) -> LikelihoodScorer:
        """See `Bundle.likelihood_scorer`; there is no row that is nobody's."""
        # super() has no cell to find in a class with slots.
        return Bundle.likelihood_scorer(self, task_name(self.settings.tasks, task), **changes)

    def fingerprint(self, task: str = "") -> str:
        """See `Bundle.fingerprint`; the other tasks of the bank have no part in it.

        Except in the width of vectors, which is that of the widest: an index has to be built anew
        when a task with wider ones joins.
        """
        name = task_name(self.settings.tasks, task)
        manifest, template = self.bank.manifests[name], self.template(name)
        own = dataclasses.asdict(manifest.settings)
        del own["prepared"]  # where the data lie changes no result
        width = self.model.config.prompts.retrieval_dim if manifest.prompts.retrieval_dim else 0
        return digest(
            {
                "config": dataclasses.asdict(self.model.config.replace(prompts=manifest.prompts)),
                "vocabulary": self.vocabulary.fingerprint,
                "retrieval_dim": width,
                "task": own,
                "template": None if template is None else template.to_spec(),
                "checksums": checksums(flatten(self.variables["params"])),
                "prompts": manifest.prompts_fingerprint,
            }
        )


@gin.configurable
def load_with_bank(
    model_dir: str | Path,
    *,
    bank: str | Path | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> Bundle:
    """`load_model`, or the tasks of a bank on the backbone that is there.

    Args:
      model_dir: of a run; with a bank, of one that has its tasks' backbone.
      bank: its folder; None: the run's own tasks. `load_bank` (gin) has its other settings.
      step, mesh, rules: as for `load_model`.

    Returns:
      A `Bundle`; with a bank a `BankBundle`.

    Raises:
      CheckpointError, ConfigError: as `load_model` and `load_bank`.
    """
    if bank is None:
        return load_model(model_dir, step=step, mesh=mesh, rules=rules)
    loaded = load_bank(bank, model_dir, step=step, mesh=mesh, rules=rules)
    return BankBundle(
        model=loaded.model,
        variables=loaded.variables,
        vocabulary=loaded.vocabulary,
        settings=InferenceSettings(loaded.source_length, loaded.target_length, loaded.tasks),
        step=locate(model_dir, step).step,
        mesh=mesh,
        rules=tuple(rules),
        bank=loaded,
    )
