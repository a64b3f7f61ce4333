"""Text of users, candidates and rows: the only place where a prepared data set's text is made.

`Renderer` renders the rows of a data set and the requests of a served model, so that what a model
reads when it is used cannot drift from what it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from m6rec_jax.data.co_occurrence import ranked_text
from m6rec_jax.data.grouping import Group
from m6rec_jax.data.negatives import NegativeSampler, asked
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.reranking_candidates import RerankingCandidates
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.data.statistics_state import UserState
from m6rec_jax.data.views import Row
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Event, Item, User, Value
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import WRITING, common_values

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
            found = self._statistics.group_features(user_id, items, time, state=state)
        if given is not None:
            found = [{**one, **own} for one, own in zip(found, given, strict=True)]
        return list(map(self._template.candidate, items, found))


class RowRenderer:
    """Rows of the views, as of the moment the statistics stand at.

    Args:
      dataset: an open data set.
      template: its checked template.
      statistics: as of the moment of the group that is rendered.
      sampler: draws negatives; None for data with logged outcomes.
      negatives: negatives per positive row.
      reranking: draws the candidates of 'reranking', which is not rendered without.
    """

    def __init__(
        self,
        dataset: Dataset,
        template: DatasetTemplate,
        statistics: Statistics,
        sampler: NegativeSampler | None = None,
        negatives: int = 0,
        reranking: RerankingCandidates | None = None,
    ) -> None:
        self._users, self._items = dataset.user_records, dataset.item_records
        self._items_by_id: Mapping[str, Item] = {item.id: item for item in self._items}
        self._template, self._label = template, dataset.spec.label
        self._statistics = statistics
        self._renderer = Renderer(template, statistics)
        self._sampler, self._negatives = sampler, negatives
        self._reranking = reranking
        self._common = {
            kind: common_values(self._items, entry.shared)
            for kind, entry in template.writing.items()
        }

    def row(self, view: str, group: Group) -> Row | None:
        """The row of `view` that a group becomes, None where it becomes none.

        Groups have one event where the view is one of `writing_templates.WRITING`.
        """
        if view in WRITING:
            return self.writing_row(view, group)
        return {
            "groups": self.scoring_row,
            "next_items": self.next_items_row,
            "reranking": self.reranking_row,
            "documents": self.behaviour_document,
        }[view](group)

    def scoring_row(self, group: Group) -> Row:
        """A row of the view 'groups'. Sampled negatives stand after the positive they go with."""
        items, values = group.items, group.values
        labels = self._label.labels(np.asarray(values)).tolist()
        if self._sampler is not None:
            items, values, labels = self._with_negatives(group)
        return {
            **self._of_user(group),
            "group_id": group.group_id,
            "candidates": self._candidates(group, items),
            "item_indices": items,
            "labels": labels,
            "ratings": values,
        }

    def next_items_row(self, group: Group) -> Row:
        """A row of the view 'next_items'; the text of an item is the same for all users."""
        return {
            **self._of_user(group),
            "items": [self._template.item(self._items[index]) for index in group.items],
            "item_indices": group.items,
        }

    def reranking_row(self, group: Group) -> Row | None:
        """A row of the view 'reranking'; None where `RerankingCandidates.draw` gives none."""
        assert self._reranking is not None
        recent = group.history_items[-self._reranking.counts.options.recent :]
        drawn = self._reranking.draw(group.part, group.user, group.items[0], recent, group.seen)
        if drawn is None:
            return None
        items, ranks = (numbers.tolist() for numbers in drawn)
        return {
            **self._of_user(group),
            "recent_indices": recent,
            "candidates": [
                ranked_text(rank, self._template.item(self._items[index]))
                for index, rank in zip(items, ranks, strict=True)
            ],
            "item_indices": items,
            "labels": [1] + [0] * (len(items) - 1),
        }

    def behaviour_document(self, group: Group) -> Row:
        """A document: the history, and what the user did next, each with its outcome in words."""
        candidates = [item_in_document(self._template, self._items[index]) for index in group.items]
        texts = [
            sentence(sentence(candidate) + " " + self._template.outcome(value))
            for candidate, value in zip(candidates, group.values, strict=True)
        ]
        return {"kind": "behaviour", "source": self._history(group), "target": " ".join(texts)}

    def writing_row(self, kind: str, group: Group) -> Row | None:
        """A text about an item that the user liked, from what stood in the history before.

        Returns:
          None where the user did not like it, or the template has nothing to say.
        """
        (index,), (value,) = group.items, group.values
        if not self._label.is_positive(value):
            return None
        template, item = self._template.writing[kind], self._items[index]
        liked = [
            past
            for past, worth in zip(group.history_items, group.history_values, strict=True)
            if self._label.is_positive(worth)
        ]
        written = template.written(item, [self._items[past] for past in liked], self._common[kind])
        if written is None:
            return None
        user_id = self._users[group.user].id
        return {
            "text_id": f"{user_id}/{item.id}",
            "text_index": group.group_id,
            "user_id": user_id,
            "item_indices": [index],
            "seen_indices": [],
            "liked_indices": liked,
            "source": template.source(self._history(group), item),
            "prefix": template.render_prefix(item),
            "target": written.text,
            "features": list(written.features),
        }

    def _of_user(self, group: Group) -> Row:
        return {
            "user_id": self._users[group.user].id,
            "user_index": group.user,
            "time": group.time,
            "history": self._history(group),
        }

    def _history(self, group: Group) -> list[str]:
        user = self._users[group.user]
        events = [
            Event(user.id, self._items[item].id, time, value)
            for item, time, value in zip(
                group.history_items, group.history_times, group.history_values, strict=True
            )
        ]
        return self._renderer.history(
            user, events, self._items_by_id, group.time, state=self._state(group)
        )

    def _candidates(self, group: Group, indices: Sequence[int]) -> list[str]:
        items = [self._items[index] for index in indices]
        user_id = self._users[group.user].id
        return self._renderer.candidates(user_id, items, group.time, state=self._state(group))

    def _state(self, group: Group) -> UserState | None:
        """What is known of a group's user, in place of what statistics know by the id."""
        return None

    def _with_negatives(self, group: Group) -> tuple[list[int], list[float], list[int]]:
        assert self._sampler is not None
        drawn = self._sampler.sample(
            self._statistics,
            key=f"{self._users[group.user].id}:{group.time}:{self._items[group.items[0]].id}",
            positives=group.items,
            seen=group.seen,
            moment=group.moment,
            count=self._negatives,
        )
        items: list[int] = []
        values: list[float] = []
        labels: list[int] = []
        for row in asked(drawn):
            items += [group.items[row], *drawn[row]]
            values += [group.values[row]] + [math.nan] * len(drawn[row])
            labels += [1] + [0] * len(drawn[row])
        return items, values, labels


def item_document(template: DatasetTemplate, item: Item) -> Row:
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
