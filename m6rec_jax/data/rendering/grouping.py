"""Groups: consecutive rows of one user, with the history they all share.

One encoding of the history then serves every candidate of the group. The price is that the history
ends before the group's first row, so `size` trades speed against freshness.

A *repeat* is an event with an item that its user had before, in a part that its history may hold or
in its own.
"""

from __future__ import annotations

import dataclasses

from m6rec_jax.data.splitting.splits import TEST, TRAIN, VALIDATION


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How rows are grouped.

    Attributes:
      size: rows per group, at most.
      max_events: events of history, at most; the latest ones.
      strict: history ends strictly before the *time* of the group's first row (scoring); otherwise
        before that row in the user's order, so that events of the same moment are in (retrieval).
      parts: parts whose rows are grouped.
      repeats: whether repeats are rows; otherwise they only are in histories, and separate groups.
      with_seen: keep all items the user acted on so far (for sampling negatives). Where `strict`,
        groups are left out that only repeat what the user had, and nothing else that the user had
        is left to stand beside.
    """

    size: int
    max_events: int
    strict: bool = True
    parts: tuple[int, ...] = (TRAIN, VALIDATION, TEST)
    repeats: bool = True
    with_seen: bool = False
