"""Requests as text: the history and the candidates, rendered as in training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from m6rec_jax.data.features.statistics import KnownUser, Statistics
from m6rec_jax.errors import DataError
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.text.records import Event, Item, Value
from m6rec_jax.text.templates import DatasetTemplate


class RequestText(NamedTuple):
    """Texts of a request."""

    history: list[str]  # segments
    candidates: list[str]  # one per candidate


@dataclasses.dataclass(frozen=True)
class RequestRenderer:
    """Turns requests into the text that a model reads.

    Statistics of a user are looked up by the id, and the request's later behaviours are counted on
    top, but for those that lack a time or a value. Statistics of items are looked up by their ids.

    Attributes:
      template: of the data set.
      statistics: those that serving is given; None: requests bring their own.
      max_events: behaviours of a history, the latest ones, as in training; None: all.
      render_candidates: False where candidates are not scored, and may lack what that needs.
    """

    template: DatasetTemplate
    statistics: Statistics | None
    max_events: int | None = None
    render_candidates: bool = True

    def render(self, request: Request) -> RequestText:
        """Renders a request.

        Raises RejectedRow where the statistics hold events of the request's moment or later ones,
        or a field that the template cannot do without has no value.
        """
        known, history = self._known(request), request.history
        if self.max_events is not None:
            history = history[max(0, len(history) - self.max_events) :]
        events, items = _by_id(history)
        user, time = request.user, request.time
        try:
            features = {} if known is None else known.features(time)
            features = {**features, **request.statistics}
            segments = self.template.history_segments(user, events, items, time, features)
            candidates = self._candidates(request, known) if self.render_candidates else []
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None
        return RequestText(segments, candidates)

    def candidates(self, request: Request) -> list[str]:
        """The texts of a request's candidates alone; raises as `render`."""
        try:
            return self._candidates(request, self._known(request))
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None

    def had(self, request: Request) -> frozenset[str]:
        """Ids of the items that the user had, by the request and the statistics."""
        earlier = () if self.statistics is None else self.statistics.items_had(request.user.id)
        return frozenset([*earlier, *(item.id for _, item in request.history if item.id)])

    def _known(self, request: Request) -> KnownUser | None:
        if self.statistics is None:
            return None
        last = self.statistics.totals.last_time
        if request.time is not None and request.time <= last:
            problem = f"{request.time!r}, and the statistics hold events until {last!r}"
            raise RejectedRow("too_early", f"'time' is {problem}: they would leak the future")
        any_value = not self.statistics.settings.has_values
        counted = [
            (event, item)
            for event, item in request.history
            if not math.isnan(event.time) and (any_value or event.value is not None)
        ]
        return self.statistics.user(request.user.id, counted)

    def _candidates(self, request: Request, known: KnownUser | None) -> list[str]:
        items, names = request.candidates, self.template.candidate_template.fields
        features: Sequence[Mapping[str, Value]] = [request.statistics] * len(items)
        if known is not None:
            counted = known.features_of(items, request.time, names)
            features = [{**counts, **request.statistics} for counts in counted]
        given = zip(items, features, request.candidate_statistics, strict=True)
        return [self.template.candidate(item, {**counts, **more}) for item, counts, more in given]


def _by_id(behaviours: Sequence[tuple[Event, Item]]) -> tuple[list[Event], dict[str, Item]]:
    """Events, and their items by id.

    Items without an id, and one that a request describes in two ways, get an id of their own: it
    never reaches the text.
    """
    events: list[Event] = []
    items: dict[str, Item] = {}
    for index, (event, item) in enumerate(behaviours):
        key = event.item_id
        if not key or items.setdefault(key, item) is not item:
            key = f"history[{index}]"
            items[key] = item
            event = dataclasses.replace(event, item_id=key)
        events.append(event)
    return events, items
