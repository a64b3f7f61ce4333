"""A user's past and the candidates in words, with statistics: one code for training and serving.

`rendering` tells the groups of a data set with it, `request_rendering` the requests of a served
model, so that what a model reads when it is used cannot drift from what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from m6rec_jax.tables.statistics import Statistics
from m6rec_jax.tables.statistics_state import UserState
from m6rec_jax.text.records import Event, Item, User, Value
from m6rec_jax.text.templates import DatasetTemplate

Told = Mapping[str, Value]


class Teller:
    """Text as of the moment the statistics stand at.

    Args:
      template: of the data set.
      statistics: what templates tell of users and items; None: only what a call brings.
    """

    def __init__(self, template: DatasetTemplate, statistics: Statistics | None) -> None:
        self._template = template
        self._statistics = statistics

    def history(
        self,
        user: User,
        events: Sequence[Event],
        items: Mapping[str, Item],
        time: float,
        *,
        ahead: bool = False,
        state: UserState | None = None,
        given: Told | None = None,
    ) -> list[str]:
        """The segments of a history: see `DatasetTemplate.history_segments`.

        Args:
          user, events, items: see there.
          time: the moment, unix seconds.
          ahead, state: see `Statistics.user_features`.
          given: statistics of the user and the moment that go before those looked up.

        Raises:
          DataError: as there, or the statistics hold events of the moment or later ones.
        """
        told: dict[str, Value] = {}
        if self._statistics is not None:
            told = self._statistics.user_features(user.id, time, ahead=ahead, state=state)
        return self._template.history_segments(user, events, items, time, told | dict(given or {}))

    def candidates(
        self,
        user_id: str,
        items: Sequence[Item],
        time: float,
        *,
        ahead: bool = False,
        state: UserState | None = None,
        given: Sequence[Told] | None = None,
    ) -> list[str]:
        """The text of each item that is to be scored for a user.

        Args:
          user_id, items: may be unknown to the statistics.
          time, ahead, state: see `history`.
          given: per item, statistics that go before those looked up.

        Raises:
          DataError: as in `history`.
        """
        told: list[dict[str, Value]] = [{} for _ in items]
        if self._statistics is not None:
            told = self._statistics.group_features(user_id, items, time, ahead=ahead, state=state)
        if given is not None:
            told = [found | dict(own) for found, own in zip(told, given, strict=True)]
        return [
            self._template.candidate(item, statistics)
            for item, statistics in zip(items, told, strict=True)
        ]
