"""What a dialogue has come to: its turns, what they name and wish for, what a model reads of it.

Rows of training and dialogues in use are kept by the same class, so that both read the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from m6rec_jax.dialogue.reading import DialogueReader, Reading
from m6rec_jax.dialogue.wishes import Wish, columns_of, updated

# Who seeks, and who recommends.
USER, SYSTEM = "USER", "SYSTEM"
# Ends the source of a row in which an item is recommended, not a reply given.
RECOMMENDS = f"{SYSTEM} recommends"
# How the model's replies begin; it is no part of what is said.
REPLY_PREFIX = f"{SYSTEM}:"


class DialogueState:
    """A dialogue so far.

    Args:
      reader: of its turns; None: they are not read, and `hear` is given what they name.

    Attributes:
      turns: as a model reads them, "USER: ...".
      mentioned: places of the items that turns name, in the order in which they were first named.
      named: of those, and of items that were offered beside them, likewise.
      liked: of those that the user likes.
      latest: of the items that were named or offered last, as they came.
      wishes: that hold now, the latest first.
      reading: of the user's latest turn.
    """

    def __init__(self, reader: DialogueReader | None) -> None:
        self._reader = reader
        self.turns: list[str] = []
        self.mentioned: dict[int, None] = {}
        self.named: dict[int, None] = {}
        self.liked: list[int] = []
        self.latest: Sequence[int] = ()
        self.wishes: tuple[Wish, ...] = ()
        self.reading = Reading()

    def hear(self, speaker: str, text: str, named: Sequence[int] | None = None) -> None:
        """The next turn of a `speaker`, `USER` or `SYSTEM`; `named` are places of the items that it
        names, None: those that are read in it.
        """
        self.turns.append(f"{speaker}: {text}")
        reading = Reading()
        if self._reader is not None and (speaker == USER or named is None):
            if speaker == USER and named is None:
                text = self._reader.corrected(text)
            reading = self._reader.read(text, self.latest)
        named = list(reading.named) if named is None else named
        if speaker == USER:
            before = () if reading.clears else self.wishes
            self.wishes = updated(before, reading.wishes, reading.adds, reading.withdrawn)
            self.reading = reading
            self.liked += [place for place in reading.liked if place not in self.liked]
        # A reply may name what was spoken of beside what it offers: "like Fargo".
        new = [place for place in named if speaker == USER or place not in self.named]
        self.mentioned.update(dict.fromkeys(named))
        self.named.update(dict.fromkeys(named))
        self.latest = new or self.latest

    def source(
        self, max_turns: int | None = None, num_items: int = 0, history: Sequence[str] = ("",)
    ) -> list[str]:
        """Segments that a reply is generated from: profile, behaviours, turns oldest first, and
        what is known of items before the last turn.

        The length budget keeps the first segment, the profile, and the last turn; the oldest turns
        go before what is known of items.

        Args:
          max_turns: how many of the latest turns are read; None: all.
          num_items: of how many items that turns name it is read what is known, at most.
          history: of `DatasetTemplate.history_segments`; its empty segments are left out.
        """
        turns = self.turns if max_turns is None else self.turns[-max_turns:]
        items: list[str] = []
        if self._reader is not None and num_items:
            catalogue = self._reader.catalogue
            columns = {c for wish in self.wishes for c in columns_of(wish, catalogue)}
            items = catalogue.segments(list(self.mentioned), columns, num_items)
        profile, *behaviours = history or ("",)
        return [profile, *filter(None, behaviours), *turns[:-1], *items, *turns[-1:]]
