"""What a view of users, items and events is: its columns, which events make a row, and its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.features.user_events import Grouping, Groups
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.splitting.negatives import num_negatives
from m6rec_jax.data.store.manifest import fingerprint
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import WRITING

if TYPE_CHECKING:
    from m6rec_jax.data.rendering.shard_rows import ShardRows

# Of the views whose rows hold a history, and of those whose texts are generated.
OF_USER = "user_id str, user_index int, time time, history str[]"
GENERATED = (
    "text_id str, text_index int, user_id str, item_indices int[], seen_indices int[], "
    "source str[], prefix str, target str, features str[]"
)


class Rows(NamedTuple):
    """Columns of the rows of a view, and the part code of each `[rows]`."""

    columns: Mapping[str, Any]
    parts: np.ndarray


@dataclasses.dataclass(frozen=True)
class View:
    """One view: a file beside this one that is named in `event_views`.

    Attributes:
      name: of the view.
      seed: that shuffles its rows, another one for each view.
      columns: such as `user_id str, history str[]`: see `views.COLUMNS`.
      rows: renders the groups of a user shard.
      size: events of a row at most, by the options and the negatives sampled beside each.
      strict: see `Grouping`.
      of_candidates: whether a model scores its rows candidate by candidate.
      wants_items: whether rows want items; where repeats are ignored, none that the user had.
      counted: whether co-occurrences of items are written with it.
    """

    name: str
    seed: int
    columns: str
    rows: Callable[[ShardRows, Groups], Rows]
    size: Callable[[PrepareOptions, int], int] = lambda options, negatives: 1
    strict: bool = True
    of_candidates: bool = False
    wants_items: bool = False
    counted: bool = False

    def grouping(self, spec: DatasetSpec, options: PrepareOptions) -> Grouping:
        """How rows are grouped; the options say how long histories are."""
        negatives = num_negatives(spec)
        return Grouping(
            size=self.size(options, negatives),
            max_events=options.max_events or 0,
            strict=self.strict,
            repeats=spec.repeats_count or not self.wants_items,
            with_seen=self.of_candidates and negatives > 0,
        )

    def fingerprint(
        self, source: str, spec: DatasetSpec, options: PrepareOptions, statistics: StatisticsOptions
    ) -> str:
        """Of all that rows depend on; `source` is that of tables, template and split."""
        grouping = self.grouping(spec, options)
        power = options.negative_power if grouping.with_seen else None
        settings = dataclasses.asdict(grouping), dataclasses.asdict(statistics)
        return fingerprint(source, self.name, self.columns, power, *settings)

    def check(self, template: DatasetTemplate, where: str) -> None:
        """Raises an error where a template, which the file `where` holds, has no text for it."""
        if self.of_candidates and not template.has_candidates:
            raise DataError(
                f"{where}: the template 'candidate' is empty, and the view '{self.name}' is of "
                "candidates: leave it out of PrepareOptions.views, or give them a text"
            )
        if self.name in WRITING and self.name not in template.writing:
            raise ConfigError(
                f"{where}: 'template.writing' has no {self.name!r}, so there is no text to prepare "
                f"(it has: {', '.join(template.writing) or 'none'})"
            )
