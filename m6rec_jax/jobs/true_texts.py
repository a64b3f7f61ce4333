"""What generated texts may truly say: choices made of what holds for items and users."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.decoding.text_choices import TextChoices
from m6rec_jax.jobs.job import Row, TaskData
from m6rec_jax.text.records import Item
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.writing_templates import WRITING, WritingTemplate, common_values


class TrueTexts:
    """What texts of a template may truly say.

    Args:
      template: tells what items share with what the user liked.
      items: the catalogue.
      vocabulary: of the model.
    """

    def __init__(
        self,
        template: WritingTemplate,
        items: Iterable[Item],
        vocabulary: Vocabulary,
    ) -> None:
        self._template, self._vocabulary = template, vocabulary
        self._common = common_values(items, template.shared)

    def for_user(self, liked: Iterable[Item]) -> Callable[[Item], TextChoices]:
        """Of texts about items for a user, who `liked` these before, oldest first."""
        encode, given = self._vocabulary.encode, tuple(liked)
        # Made once for all texts, but not before the first is asked for.
        known = functools.cache(lambda: self._template.liked_items(given))

        def of(item: Item) -> TextChoices:
            parts = self._template.choices(item, known(), self._common)
            return TextChoices([[encode(text) for text in part] for part in parts])

        return of


class LazyChoices(Sequence[TextChoices | None]):
    """Choices of many texts, each made when it is asked for: all of them may not fit in memory.

    Args:
      makers: for each text a function that gives its choices; None: it may say anything.
    """

    def __init__(self, makers: Sequence[Callable[[], TextChoices | None]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        return self._makers[index]()


def choices_of_rows(
    data: TaskData, rows: Sequence[Row], vocabulary: Vocabulary
) -> LazyChoices | None:
    """What each text may truly say; None where the template tells of nothing shared.

    Args:
      data: of a task of kind 'generation'.
      rows: of its view.
      vocabulary: of the model.
    """
    prepared = data.prepared()
    if not tells_shared(prepared, data.view):
        return None
    items = prepared.catalogue().items
    true = TrueTexts(prepared.template().writing[data.view], items, vocabulary)

    def maker(row: Row) -> Callable[[], TextChoices]:
        liked = [items[i] for i in row["liked_indices"]]
        return lambda: true.for_user(liked)(items[row["item_indices"][0]])

    return LazyChoices(list(map(maker, rows)))


def tells_shared(prepared: Prepared, view: str) -> bool:
    """Whether texts of a view tell what an item of the catalogue shares with others."""
    if view not in WRITING or not prepared.has_template:
        return False
    return bool(prepared.template().writing[view].shared)


def choices_about(
    choices: Callable[[Item], TextChoices] | None, item: Item | None
) -> TextChoices | None:
    """What a text about an item may say, by `TrueTexts.for_user`; None: anything."""
    return None if choices is None or item is None else choices(item)
