"""What is rendered and how: the options of `m6rec data prepare`, and what follows from them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from m6rec_jax.data.dataset.schema import SPEC_FILE
from m6rec_jax.data.features.features import needed_only
from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.rendering.template_needs import checked_template
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.templates import DatasetTemplate

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.dataset.reading import Dataset

log = logging.getLogger(__name__)
# Views that are made unless others are named.
VIEWS = ("groups", "next_items", "documents")


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
      next_items_size: items of a row of 'next_items', at most.
      negative_power: sampled negatives are drawn by popularity to this power, up to 10; 0: all
        items alike.
    """

    views: Sequence[str] = VIEWS
    template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group_size: int = 4
    max_events: int | None = None
    next_items_size: int = 4
    negative_power: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.views, str):
            raise ConfigError(f"PrepareOptions.views = {self.views!r} must be several: ('...',)")
        bounds = {"group_size": 1, "next_items_size": 1, "max_events": 0, "negative_power": 0}
        for name, least in bounds.items():
            value, most = getattr(self, name), 10 if name == "negative_power" else math.inf
            if value is not None and not least <= value <= most:
                raise ConfigError(f"PrepareOptions.{name} = {value} must be from {least} to {most}")

    def with_history_length(self, counts: Mapping[str, Any]) -> PrepareOptions:
        """Options that say how many behaviours a history keeps; `counts` of the manifest."""
        if self.max_events is not None:
            return self
        mean = sum(counts["events"].values()) / max(counts["acting_users"], 1)
        kept = min(max(round(2 * mean), 5), 30)
        log.info(
            "histories keep the latest %d behaviours: users who act have %.1f events on average "
            "(PrepareOptions.max_events)",
            kept,
            mean,
        )
        return dataclasses.replace(self, max_events=kept)


def with_spec(dataset: Dataset, **changes: Any) -> Dataset:
    """The data set with other entries of its `dataset.json`."""
    return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, **changes))


def template_and_options(
    dataset: Dataset, options: StatisticsOptions | None
) -> tuple[DatasetTemplate, StatisticsOptions]:
    """The data set's template, and the options of the statistics that it asks for.

    Pairs of items are not counted, and factors not fitted, for a template that does not ask for
    them: they are most of the work.
    """
    settings = StatisticsSettings.for_dataset(dataset.spec, options)
    template = checked_template(dataset.spec, settings, str(dataset.directory / SPEC_FILE))
    fields = (*template.candidate_template.fields, *template.profile_template.fields)
    return template, needed_only(settings.options, fields)
