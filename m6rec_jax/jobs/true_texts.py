"""What generated texts may truly say: choices made of what holds for items and users."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.decoding.graphs import TextChoices
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


def choices_of_rows(data: TaskData, vocabulary: Vocabulary) -> Callable[[Row], TextChoices] | None:
    """What the text of a row of a task may truly say; None where nothing shared is told."""
    prepared = data.prepared()
    if not tells_shared(prepared, data.view):
        return None
    items = prepared.catalogue().items
    true = TrueTexts(prepared.template().writing[data.view], items, vocabulary)

    def of(row: Row) -> TextChoices:
        liked = [items[i] for i in row["liked_indices"]]
        return true.for_user(liked)(items[row["item_indices"][0]])

    return of


def tells_shared(prepared: Prepared, view: str) -> bool:
    """Whether texts of a view tell what an item of the catalogue shares with others."""
    if view not in WRITING or not prepared.has_template:
        return False
    return bool(prepared.template().writing[view].shared)
