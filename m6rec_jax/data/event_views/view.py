"""What a view of users, items and events is: its columns, which events make a row, and its rows."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from m6rec_jax.data.grouping import Grouping
from m6rec_jax.data.negatives import num_negatives
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.statistics import FORMAT as STATISTICS_FORMAT
from m6rec_jax.data.statistics_settings import StatisticsOptions
from m6rec_jax.data.user_bucket import Groups
from m6rec_jax.errors import DataError
from m6rec_jax.text.templates import DatasetTemplate

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.reading import Dataset

if TYPE_CHECKING:
    from m6rec_jax.data.bucket_rows import BucketRows

OF_USER = "user_id str, user_index int, time time, history str[]"


class Rows(NamedTuple):
    """Columns of the rows of a view, and the part code of each `[rows]`."""

    columns: Mapping[str, Any]
    parts: np.ndarray


class EventView(abc.ABC):
    """One view. A subclass is all that there is to it, beside its name in `event_views`.

    Attributes:
      name: of the view.
      columns: such as `user_id str, history str[]`: see `views.COLUMNS`.
      of_candidates: whether a model scores its rows candidate by candidate.
      wants_items: whether rows want items; where repeats are ignored, none that the user had.
      counted: whether co-occurrences of items are written with it.
      of_events: whether rows are of groups of events; others are written in their order.
      numbered: whether rows have the number of their group.
      strict: see `Grouping`.
    """

    name: str
    columns: ClassVar[str]
    of_candidates: ClassVar[bool] = False
    wants_items: ClassVar[bool] = False
    counted: ClassVar[bool] = False
    of_events: ClassVar[bool] = True
    numbered: ClassVar[bool] = False
    strict: ClassVar[bool] = True

    def size(self, options: PrepareOptions, negatives: int) -> int:
        """Events of a row, at most; `negatives` are sampled beside each."""
        return 1

    def with_seen(self, negatives: int) -> bool:
        """See `Grouping`."""
        return False

    def grouping(self, dataset: Dataset, options: PrepareOptions) -> Grouping:
        """How rows are grouped."""
        negatives = num_negatives(dataset, options)
        assert options.max_events is not None, "with_history_length"
        return Grouping(
            size=self.size(options, negatives),
            max_events=options.max_events,
            strict=self.strict,
            repeats=dataset.spec.repeats_count or not self.wants_items,
            with_seen=self.with_seen(negatives),
        )

    def settings(
        self, dataset: Dataset, options: PrepareOptions, statistics: StatisticsOptions
    ) -> list[Any]:
        """All that rows depend on beside the data set and its split (for JSON)."""
        grouping = dataclasses.asdict(self.grouping(dataset, options))
        shared = [self.name, STATISTICS_FORMAT, dataclasses.asdict(statistics), grouping]
        return [*shared, *self.own_settings(dataset, options)]

    def own_settings(self, dataset: Dataset, options: PrepareOptions) -> list[Any]:
        """Those that other views do not depend on."""
        return []

    def check(self, template: DatasetTemplate, where: str) -> None:
        """Raises an error where a template, which the file `where` holds, has no text for it."""
        if self.of_candidates and not template.has_candidates:
            raise DataError(
                f"{where}: the template 'candidate' is empty, and the view '{self.name}' is of "
                "candidates: leave it out of PrepareOptions.views, or give them a text"
            )

    @abc.abstractmethod
    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        """The rows of a bucket."""
