"""Dialogues in words: what a model reads before it answers, the same in training and in chat."""

from __future__ import annotations

from collections.abc import Sequence

# Who seeks, and who recommends.
USER, SYSTEM = "USER", "SYSTEM"
# Ends the source of a row in which an item is recommended, not a reply given.
RECOMMENDS = f"{SYSTEM} recommends"
# How the model's replies begin; it is no part of what is said.
REPLY_PREFIX = f"{SYSTEM}:"


def reply_source(
    turns: Sequence[str], history: Sequence[str] = (), items: Sequence[str] = ()
) -> list[str]:
    """Source segments: profile, behaviours, the turns ("USER: ...", "SYSTEM: ...") oldest first,
    and what is known of items that they name before the last of them.

    `history` is of `DatasetTemplate.history_segments`; its empty segments are left out. The length
    budget keeps the first segment, the profile, and the last turn; the oldest turns go before what
    is known of items.
    """
    profile, *behaviours = history or ("",)
    return [profile, *filter(None, behaviours), *turns[:-1], *items, *turns[-1:]]
