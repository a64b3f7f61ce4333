"""What inference must know of a task, and which task each request asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sized
from typing import Any

from m6rec_jax.engine.index.ranking_weights import RankingWeights
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.model import PromptConfig

# A threshold that no confidence reaches.
NEVER = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class ExitSettings:
    """Where a scoring task's rows leave the decoder, as `m6rec calibrate` chose it (section 5).

    Attributes:
      threshold: 1 less the change of a candidate's probability in the last layer, from which it
        leaves; `NEVER`: none is small enough.
      depth: exits (`ModelConfig.num_exits`) that they take at most.
    """

    threshold: float
    depth: int


@dataclasses.dataclass(frozen=True, slots=True)
class TaskSettings:
    """What inference must know of a task.

    Attributes:
      task_id: row of the prompt bank.
      positive_classes: classes whose probabilities a score adds up.
      sampling_rate: how often training saw each negative on average, above 0; 1 where none were
        sampled (`data.splitting.negatives`).
      repeat_sampling_rate: the same of items that the user had before, which may be above 1; None
        where they are sampled as others are.
      kind: of `pipeline.registration`, such as 'scoring' or 'retrieval'; empty where nobody said.
      max_events: behaviours of a history, or turns of a dialogue, at most, when the data were
        prepared; None: all.
      named_items: of how many items that a dialogue named the task read what is known, at most
        (`DialogueCatalogue.segments`).
      num_options: classes that the task has, 0 if it has none; None: those of the model.
      retrieval_dim: width of the task's own projections, 0 if it has none; None: the model's.
      source_length, target_length, candidate_length: most tokens of a history, a decoder row and a
        candidate when the task was trained, where they are fewer than the model's.
      writing: for 'generation', what is written: a key of the template's `writing`, or 'replies';
        empty for tasks of texts alone, see `reads_text`.
      prepared: name of the folder of prepared data, within the data folder, that the task was
        trained on: catalogue and statistics, unless serving is given others. The model folder's
        `datasets/<prepared>.json` has its columns and template. Empty where nobody said.
      view: of the prepared data that the task's rows come from, such as 'groups'; empty where
        nobody said.
      exits: where its rows leave the decoder; None: after the last layer.
      ranking: of a task of retrieval, what `m6rec calibrate` learnt for `engine.index.reranking`;
        None: nothing was learnt.
    """

    task_id: int = 0
    positive_classes: tuple[int, ...] = (1,)
    sampling_rate: float = 1.0
    repeat_sampling_rate: float | None = None
    kind: str = ""
    max_events: int | None = None
    named_items: int = 0
    num_options: int | None = None
    retrieval_dim: int | None = None
    source_length: int | None = None
    target_length: int | None = None
    candidate_length: int | None = None
    writing: str = ""
    prepared: str = ""
    view: str = ""
    exits: ExitSettings | None = None
    ranking: RankingWeights | None = None

    @property
    def reads_text(self) -> bool:
        """Whether requests are one text: those of tasks that a user registered with seqio."""
        return self.kind == "generation" and not self.writing

    def fingerprinted(self, exits: bool = True) -> dict[str, Any]:
        """What embeddings and scores depend on, for JSON: neither where the data lie, nor what
        dialogues are told beside, nor how what was found is ordered.

        Args:
          exits: False for what no exit changes, such as states of early layers.
        """
        values = dataclasses.asdict(self if exits else dataclasses.replace(self, exits=None))
        del values["prepared"], values["named_items"], values["ranking"]
        return values

    @property
    def sampling_rates(self) -> tuple[float, float]:
        """Of items that are new to the user, and of those that the user had before."""
        repeats = self.repeat_sampling_rate
        return self.sampling_rate, self.sampling_rate if repeats is None else repeats

    def text_length(self, limit: int) -> int:
        """Most tokens of one candidate or item, where a row has room for `limit`."""
        return min(self.candidate_length or limit, self.target_length or limit, limit)


def task_settings(tasks: Mapping[str, TaskSettings], name: str = "") -> TaskSettings:
    """Settings of a task by its name (there is no need to name the only one).

    Raises:
      ConfigError: no such task.
    """
    return tasks[task_name(tasks, name)]


def task_name(tasks: Mapping[str, TaskSettings], name: str = "") -> str:
    """The name of the task that is asked for; arguments and errors as `task_settings`."""
    if not name and len(tasks) == 1:
        return next(iter(tasks))
    if name not in tasks:
        what = f"no task '{name}'" if name else "several tasks; name one" if tasks else "no task"
        raise ConfigError(f"the model knows {what}: {', '.join(sorted(tasks)) or 'none'}")
    return name


def dialogue_part(settings: TaskSettings) -> str:
    """What a task does in a dialogue: 'replies', 'titles' or 'retrieval'; empty for other tasks."""
    if settings.kind == "generation":
        return "replies" if settings.writing == "replies" else ""
    parts = {"title_recommendation": "titles", "item_recommendation": "retrieval"}
    return parts.get(settings.kind, "")


# What tasks may lack, and the settings that say how much of it there is.
SIZES = {"classes": "num_options", "retrieval projections": "retrieval_dim"}


def check_part(prompts: PromptConfig, part: str, whose: str) -> None:
    """Raises ConfigError where a model has none of a part that is needed.

    Args:
      prompts: of the model, or of a task's row.
      part: 'classes', 'retrieval projections' or ''.
      whose: for the message.
    """
    if part and (not getattr(prompts, SIZES[part]) or (part, prompts.head) == ("classes", "none")):
        raise ConfigError(
            f"{whose} has no {part}: it was not trained for that. Name a task that it was trained "
            "on (MIXTURE_OR_TASK_NAME, or TASK where requests are answered), or a run of this one "
            f"(MODEL_DIR). A bank has room for such tasks by BankCapacity.{SIZES[part]}"
        )


def check_number(number: int, **of_requests: Sized | None) -> None:
    """Raises DataError where something is not given once for each of a number of requests."""
    for name, values in of_requests.items():
        if values is not None and len(values) != number:
            raise DataError(f"{len(values)} {name.replace('_', ' ')} for {number} requests")
