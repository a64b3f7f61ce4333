"""What is rendered and how: the options of `m6rec data prepare`, and what follows from them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from m6rec_jax.data.features import needed_only
from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.data.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.template_needs import checked_template
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.templates import DatasetTemplate

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.reading import Dataset

log = logging.getLogger(__name__)
# Views that are made unless others are asked for.
VIEWS = ("groups", "next_items", "documents", "catalogue")
# Behaviours of a history, where nothing else is asked for.
_HISTORY = (5, 30)
# With more the most popular items alone would be drawn.
_MOST_POWER = 10


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is rendered and how. Set in gin: `PrepareOptions.group_size = 8`.

    Attributes:
      views: of `event_views.EVENT_VIEWS`; of those for writing, the ones that the template has.
      template: entries in place of those of the data set's own template, such as
        `{"candidate": "{title}[, {awards}]"}`: see `DatasetTemplate`.
      group_size: candidates of a row of 'groups', at most.
      max_events: behaviours of a history, at most; the latest ones. None: twice as many as users
        who act have events on average, from 5 to 30.
      next_items_size: items of a row of 'next_items', at most; a row of 'reranking' is about the
        first of as many.
      document_events: behaviours in the target of a document, at most.
      negatives: negatives sampled per positive; None: 4 where all events are positive, else 0.
      negative_power: 0 samples all items alike, 1 by popularity.
      reranking_negatives: candidates of a row of 'reranking' beside the wanted one.
      reranking_depth: they are drawn from so many of the items that occur most with its last ones.
      seed: of the negatives.
    """

    views: Sequence[str] = VIEWS
    template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group_size: int = 4
    max_events: int | None = None
    next_items_size: int = 4
    document_events: int = 4
    negatives: int | None = None
    negative_power: float = 0.5
    reranking_negatives: int = 11
    reranking_depth: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.views, str):
            raise ConfigError(f"PrepareOptions.views = {self.views!r} must be several: ('...',)")
        least = {
            **dict.fromkeys(("group_size", "next_items_size", "document_events"), 1),
            **dict.fromkeys(("reranking_negatives", "reranking_depth"), 1),
            "max_events": 0,
        }
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ConfigError(f"PrepareOptions.{name} = {given} must be at least {value}")
        if not 0 <= self.negative_power <= _MOST_POWER:
            raise ConfigError(
                f"PrepareOptions.negative_power = {self.negative_power} must be from 0 to "
                f"{_MOST_POWER}"
            )


def with_history_length(options: PrepareOptions, counts: Mapping[str, Any]) -> PrepareOptions:
    """Options that say how many behaviours a history keeps; `counts` of the manifest."""
    if options.max_events is not None:
        return options
    mean = sum(counts["events"].values()) / max(counts["acting_users"], 1)
    least, most = _HISTORY
    kept = min(max(round(2 * mean), least), most)
    log.info(
        "histories keep the latest %d behaviours: users who act have %.1f events on average "
        "(PrepareOptions.max_events)",
        kept,
        mean,
    )
    return dataclasses.replace(options, max_events=kept)


def with_template(dataset: Dataset, entries: Mapping[str, Any]) -> Dataset:
    """The data set with some entries of its template replaced."""
    template = {**dataset.spec.template, **entries}
    return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, template=template))


def with_repeats(dataset: Dataset, protocol: str | None) -> Dataset:
    """The data set with another protocol for repeats: 'count' or 'ignore'."""
    return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, repeats=protocol))


def template_and_options(
    dataset: Dataset, options: StatisticsOptions | None
) -> tuple[DatasetTemplate, StatisticsOptions]:
    """The data set's template, and the options of the statistics that it asks for.

    Pairs of items are not counted, and factors not fitted, for a template that does not ask for
    them: they are most of the work.
    """
    spec = dataset.spec
    where = str(dataset.directory / SPEC_FILE)
    settings = StatisticsSettings.for_dataset(spec, options)
    template = checked_template(spec, settings, where)
    wanted = (*template.candidate_template.fields, *template.profile_template.fields)
    return template, needed_only(settings.options, wanted)
