"""Which items each user acted on, as they came first: what pairs and factors are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from m6rec_jax.data.features.timeline import MappedArrays, Timeline
from m6rec_jax.data.features.user_events import Ranges


@dataclasses.dataclass(frozen=True)
class WindowEntries(MappedArrays):
    """Counted events that are their user's first with their item, by user, then in order.

    A user's *window* at a moment are the last `neighbour_window` entries before it.

    Attributes:
      user, item: their numbers, in the order in which they came first `[entries]`.
      place: of the event in the timeline `[entries]`.
      forgotten: place of the entry that put this one out of the window, or past all `[entries]`.
      value: that the user gave the item `[entries]`.
      difference: of the value from the mean of all before `[entries]`.
      low: the window that it came to was that of the entries from this one up to it `[entries]`.
      by_place: numbers of the entries in the order of places `[entries]`.
    """

    user: np.ndarray
    item: np.ndarray
    place: np.ndarray
    forgotten: np.ndarray
    value: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    by_place: np.ndarray

    @classmethod
    def of(
        cls,
        places: Sequence[np.ndarray],
        timeline: Timeline,
        item_number: np.ndarray,
        window: int,
    ) -> Self:
        """Makes the arrays of `places` of `ShardEvents.entries` of all shards.

        `item_number` numbers items as they came first `[items]`; of a user's distinct items the
        last `window` are remembered.
        """
        place = np.concatenate(places)
        low = np.flatnonzero(np.append(True, np.diff(timeline.user[place]) != 0))
        by_user = np.argsort(place[low])
        users = Ranges(low[by_user], np.append(low[1:], len(place))[by_user])
        place, user = place[users.numbers], users.owners
        kind = np.int32 if len(timeline.time) < 2**31 else np.int64
        forgotten = np.full(len(place), len(timeline.time), kind)
        same = user[:-window] == user[window:]
        forgotten[:-window][same] = place[window:][same]
        return cls(
            user.astype(np.int32),
            item_number[timeline.item[place]].astype(np.int32),
            place,
            forgotten,
            timeline.value[place],
            timeline.value[place] - timeline.mean(place),
            np.maximum(users.offsets[user], np.arange(len(user)) - window).astype(kind),
            np.argsort(place).astype(kind),
        )

    def at(self, place: int) -> np.ndarray:
        """Which entries all windows had at a place of the timeline `[entries]` bool."""
        return (self.place < place) & (self.forgotten >= place)
