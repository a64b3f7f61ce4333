"""Text of users, candidates and rows: the only place where a prepared data set's text is made.

`Renderer` renders the rows of a data set and the requests of a served model, so that what a model
reads when it is used cannot drift from what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from m6rec_jax.data.statistics import Statistics
from m6rec_jax.data.statistics_state import UserState
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Event, Item, User, Value
from m6rec_jax.text.templates import DatasetTemplate

Features = Mapping[str, Value]


class Renderer:
    """Text as of the moment the statistics stand at.

    Args:
      template: of the data set.
      statistics: features of users and items; None: only what a call brings.
    """

    def __init__(self, template: DatasetTemplate, statistics: Statistics | None) -> None:
        self._template = template
        self._statistics = statistics

    def history(
        self,
        user: User,
        events: Sequence[Event],
        items: Mapping[str, Item],
        time: float | None,
        *,
        state: UserState | None = None,
        given: Features | None = None,
    ) -> list[str]:
        """The segments of a history: see `DatasetTemplate.history_segments`.

        Args:
          user, events, items: see there.
          time: the moment, unix seconds; None where it is not known.
          state: see `Statistics.user_features`.
          given: features of the user and the moment that go before those looked up.

        Raises:
          DataError: as there, or the statistics hold events of the moment or later ones.
        """
        found: Features = {}
        if self._statistics is not None:
            found = self._statistics.user_features(user.id, time, state=state)
        return self._template.history_segments(
            user, events, items, time, {**found, **(given or {})}
        )

    def candidates(
        self,
        user_id: str,
        items: Sequence[Item],
        time: float | None,
        *,
        state: UserState | None = None,
        given: Sequence[Features] | None = None,
    ) -> list[str]:
        """The text of each item that is to be scored for a user.

        Args:
          user_id, items: may be unknown to the statistics.
          time, state: see `history`.
          given: per item, features that go before those looked up.

        Raises:
          DataError: as in `history`.
        """
        found: Sequence[Features] = [{} for _ in items]
        if self._statistics is not None:
            names = self._template.candidate_template.fields
            found = self._statistics.group_features(user_id, items, time, state=state, names=names)
        if given is not None:
            found = [{**one, **own} for one, own in zip(found, given, strict=True)]
        return list(map(self._template.candidate, items, found))


def item_document(template: DatasetTemplate, item: Item) -> dict[str, Any]:
    """A document: the item in the wording of the catalogue, then every other attribute."""
    named = template.item_template.fields
    others = [
        sentence(f"{name.replace('_', ' ')}: {text_of(value)}")
        for name, value in item.attributes.items()
        if name not in named and text_of(value)
    ]
    target = " ".join([sentence(template.item(item)), *others])
    return {"kind": "item", "source": [], "target": target}


def item_in_document(template: DatasetTemplate, item: Item) -> str:
    """The text of an item that a user acted on: of a candidate, if there are candidates."""
    return template.candidate(item) if template.has_candidates else template.item(item)


def sentence(text: str) -> str:
    """Ends a text with a full stop, unless it ends a sentence already or is empty."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."
