"""What a data set's template asks of its tables, known before anything is rendered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from m6rec_jax.data.dataset.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.features.features import feature_names, user_feature_names
from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.format_strings import Template, text_of
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate

if TYPE_CHECKING:  # with DuckDB, which serving goes without
    from m6rec_jax.data.dataset.reading import Dataset


def checked_template(
    spec: DatasetSpec, settings: StatisticsSettings, where: str
) -> DatasetTemplate:
    """The data set's template, all of whose fields exist; `where` it stands is named in errors.

    Raises:
      ConfigError: it does not parse, asks for a field that does not exist, or for a statistic
        outside brackets; or items have no columns, so that nothing can be said of them.
    """
    template = DatasetTemplate.parse(spec.template, where)
    if not spec.items.columns:
        raise ConfigError(f"{where}: items.columns is empty, and nothing is known of any item")
    names, of_user = feature_names(settings), user_feature_names(settings)
    try:
        template.validate(spec.users.columns, spec.items.columns, names, of_user)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for part in (template.profile_template, template.context_template, template.candidate_template):
        if needed := next((name for name in part.required if name in names), None):
            raise ConfigError(
                f"{where}: template '{part.name}' needs a value for {{{needed}}}, and a new user "
                "or item has no statistics: put it and its words in an optional clause [ ... ]"
            )
    return template


def optional_item_templates(template: DatasetTemplate) -> list[Template]:
    """Templates, of those that must say something of every item, that may say nothing of one."""
    # A candidate that is empty altogether: rows of candidates are not wanted.
    candidates = [template.candidate_template] if template.has_candidates else []
    return [one for one in (template.item_template, *candidates) if one.may_be_empty]


def items_without_text(template: DatasetTemplate, items: Sequence[Item]) -> dict[str, list[str]]:
    """Name of a template -> ids of items of which it says nothing, which no model can read.

    Of a new item there are no statistics.
    """
    silent = {
        part.name: [item.id for item in items if not text_of(part.render(item.attributes))]
        for part in optional_item_templates(template)
    }
    return {name: ids for name, ids in silent.items() if ids}


def check_texts(dataset: Dataset, template: DatasetTemplate) -> None:
    """Raises DataError where a template says nothing of some items."""
    for name, empty in items_without_text(template, dataset.item_records).items():
        raise DataError(
            f"{dataset.directory / SPEC_FILE}: the template '{name}' says nothing of "
            f"{len(empty)} items, the first of which is {empty[0]!r}: let it name a column "
            f"that all items have, or begin with a word"
        )


@dataclass(frozen=True)
class TemplateNeeds:
    """Values without which some row could not be rendered: of users and items, column -> name of
    the template that needs it. `template` is for `outcome`; None for a data set that has none.
    """

    users: Mapping[str, str]
    items: Mapping[str, str]
    template: DatasetTemplate | None

    @classmethod
    def of(cls, spec: DatasetSpec, where: str) -> TemplateNeeds:
        """Reads them off a data set's template; arguments and errors as `checked_template`."""
        if not spec.template:
            return cls({}, {}, None)
        settings = StatisticsSettings.for_dataset(spec)
        template = checked_template(spec, settings, where)
        if spec.events.value is None and template.needs_outcome and not template.outcome(None):
            raise ConfigError(
                f"{where}: template 'event' needs a value for {{outcome}}, and events without a "
                "value have no words but an outcome that is alone and has no 'at_least'"
            )
        return cls(*template.required(feature_names(settings)), template)

    def without_words(self, values: np.ndarray) -> np.ndarray:
        """Which of the events' values `[n]` no outcome has words for, though each needs some."""
        if self.template is None or not self.template.needs_outcome:
            return np.zeros(len(values), bool)
        outcome = self.template.outcome
        lacking = [math.isfinite(value) and not outcome(value) for value in values.tolist()]
        return np.asarray(lacking, bool)
