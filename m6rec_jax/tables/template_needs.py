"""What a data set's template asks of its tables, known before anything is rendered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.tables.schema import DatasetSpec
from m6rec_jax.tables.statistics import Statistics
from m6rec_jax.text.templates import DatasetTemplate


def checked_template(spec: DatasetSpec, statistics: Iterable[str], where: str) -> DatasetTemplate:
    """The data set's template, all of whose fields exist.

    Args:
      spec: of the data set.
      statistics: names of what its statistics tell.
      where: the file it stands in, for error messages.

    Raises:
      ConfigError: it does not parse, or asks for a field that does not exist.
    """
    template = DatasetTemplate.parse(spec.template, where)
    try:
        template.validate(spec.users.columns, spec.items.columns, statistics)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return template


@dataclass(frozen=True)
class TemplateNeeds:
    """Values without which some row could not be told.

    Attributes:
      users, items: column -> name of the template that needs it.
      template: for `outcome`; None for a data set that has no template.
    """

    users: Mapping[str, str]
    items: Mapping[str, str]
    template: DatasetTemplate | None

    @classmethod
    def of(cls, spec: DatasetSpec, where: str) -> TemplateNeeds:
        """Reads them off a data set's template; arguments and errors as `checked_template`."""
        if not spec.template:
            return cls({}, {}, None)
        names = Statistics.for_dataset(spec).names()
        template = checked_template(spec, names, where)
        if spec.events.value is None and template.needs_outcome and not template.outcome(None):
            raise ConfigError(
                f"{where}: template 'event' needs a value for {{outcome}}, and events without a "
                "value have no words but an outcome that is alone and has no 'at_least'"
            )
        users, items = template.required(names)
        return cls(users, items, template)

    def without_words(self, values: np.ndarray) -> np.ndarray:
        """Which of the events' values `[n]` no outcome has words for, though each needs some."""
        found = np.zeros(len(values), bool)
        if self.template is not None and self.template.needs_outcome:
            for value in np.unique(values[np.isfinite(values)]).tolist():
                if not self.template.outcome(value):
                    found |= values == value
        return found
