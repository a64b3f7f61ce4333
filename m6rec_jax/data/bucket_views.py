"""Rows of the views for the users of one bucket, as Arrow tables.

Text is rendered by the templates that serving renders with, each distinct text once
(`text.column_text`): a behaviour of a history differs by item, outcome and age in words.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data import views
from m6rec_jax.data.bucket_features import GroupFeatures, SharedStatistics
from m6rec_jax.data.co_occurrence import RECENT, ranked_text
from m6rec_jax.data.epochs import epoch_of
from m6rec_jax.data.negatives import NegativeSampler, asked
from m6rec_jax.data.render import item_in_document, sentence
from m6rec_jax.data.reranking_candidates import DrawnCandidates
from m6rec_jax.data.schema import LabelSpec
from m6rec_jax.data.user_bucket import Groups, Ranges, UserBucket
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source, classes, distinct_texts, render_all
from m6rec_jax.text.records import Item, User, Value
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import common_values

_SECONDS_OF_CONTEXT = 3600.0


class Rows(NamedTuple):
    """Rows of a view, and the part code of each `[rows]`."""

    table: pa.Table
    parts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What is to be scored in the rows of 'groups'.

    Attributes:
      ranges: of each group among the candidates.
      items: indices in the items table `[candidates]`.
      values: NaN for none `[candidates]`.
      labels: 0 or 1 `[candidates]`.
    """

    ranges: Ranges
    items: np.ndarray
    values: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Running sums of all items' weights, whenever negatives look at them anew.

    Attributes:
      schedule: counts of events `[epochs]`.
      cumulative: `[epochs, items]`.
    """

    schedule: np.ndarray
    cumulative: np.ndarray


class BucketViews:
    """Renders the rows of a bucket.

    Args:
      bucket: the events.
      shared: what statistics look things up in.
      template, label: of the data set.
      users, items: records in the order of their tables.
      max_events: behaviours of a history, at most.
    """

    def __init__(
        self,
        bucket: UserBucket,
        shared: SharedStatistics,
        template: DatasetTemplate,
        label: LabelSpec,
        users: Sequence[User],
        items: Sequence[Item],
        max_events: int,
    ) -> None:
        self._bucket, self._shared = bucket, shared
        self._template, self._label = template, label
        self._users, self._items = users, items
        self._max_events = max_events
        self._known: dict[int, tuple[Groups, pa.ListArray]] = {}

    # ---- views

    def groups(
        self,
        groups: Groups,
        group_id: np.ndarray,
        candidates: Candidates,
        neighbours: tuple[np.ndarray, np.ndarray] | None,
    ) -> Rows:
        """The rows of 'groups'; `neighbours` of `NeighbourFold.answer` for all candidates."""
        features = GroupFeatures(self._bucket, groups, self._shared)
        texts = self._candidates(features, candidates.ranges, candidates.items, neighbours)
        return self._rows(
            "groups",
            groups,
            {
                **self._of_users(groups, features),
                "group_id": group_id,
                "candidates": _lists(candidates.ranges, texts),
                "item_indices": _lists(candidates.ranges, candidates.items),
                "labels": _lists(candidates.ranges, candidates.labels),
                "ratings": _lists(candidates.ranges, candidates.values.astype(np.float32)),
            },
        )

    def next_items(self, groups: Groups) -> Rows:
        """The rows of 'next_items'."""
        features = GroupFeatures(self._bucket, groups, self._shared)
        items = self._bucket.item[groups.rows.numbers]
        texts = distinct_texts([items], lambda n: self._template.item(self._items[items[n]]))
        own = Ranges(groups.rows.offsets[:-1], groups.rows.offsets[1:])
        return self._rows(
            "next_items",
            groups,
            {
                **self._of_users(groups, features),
                "items": _lists(own, texts),
                "item_indices": _lists(own, items),
            },
        )

    def reranking(self, groups: Groups, drawn: DrawnCandidates) -> Rows:
        """The rows of 'reranking'; of histories the last items are told."""
        features = GroupFeatures(self._bucket, groups, self._shared)
        inside = np.arange(drawn.items.shape[1]) < drawn.counts[:, None]
        items, ranks = drawn.items[inside], drawn.ranks[inside]
        texts = distinct_texts(
            [ranks, items],
            lambda n: ranked_text(int(ranks[n]), self._template.item(self._items[items[n]])),
        )
        ends = np.cumsum(drawn.counts)
        own = Ranges(ends - drawn.counts, ends)
        bucket = self._bucket
        recent = bucket.histories(groups, min(self._max_events, RECENT))
        rows = self._rows(
            "reranking",
            groups,
            {
                **self._of_users(groups, features),
                "recent_indices": _lists(recent, bucket.item[bucket.past[recent.numbers]]),
                "candidates": _lists(own, texts),
                "item_indices": _lists(own, items),
                "labels": _lists(own, np.nonzero(inside)[1] == 0),
            },
        )
        there = drawn.counts > 0
        return Rows(rows.table.filter(pa.array(there)), rows.parts[there])

    def documents(self, groups: Groups) -> Rows:
        """The rows of kind 'behaviour' of 'documents'."""
        features = GroupFeatures(self._bucket, groups, self._shared)
        positions = groups.rows.numbers
        items = self._bucket.item[positions]
        candidates = distinct_texts(
            [items], lambda n: item_in_document(self._template, self._items[items[n]])
        )
        outcomes = self._outcomes.codes[positions]
        told = candidates.to_pylist()
        texts = distinct_texts(
            [outcomes, np.asarray(candidates.dictionary_encode().indices)],
            lambda n: sentence(f"{sentence(told[n])} {self._outcomes.values[outcomes[n]]}"),
        ).to_pylist()
        bounds = itertools.pairwise(groups.rows.offsets.tolist())
        targets = [" ".join(texts[start:end]) for start, end in bounds]
        return self._rows(
            "documents",
            groups,
            {
                "kind": pa.array(["behaviour"] * len(groups)),
                "source": self._histories(groups, features),
                "target": targets,
            },
        )

    def writing(self, kind: str, groups: Groups, group_id: np.ndarray) -> Rows:
        """The rows of a view of `text.writing_templates`: one event each, that the user liked."""
        template = self._template.writing[kind]
        bucket = self._bucket
        common = common_values(self._items, template.shared)
        ranges = bucket.histories(groups, self._max_events)
        liked = self._label.labels(bucket.value).astype(bool)
        rows, written, likes = [], [], []
        for number in np.flatnonzero(liked[groups.rows.low]).tolist():
            past = bucket.past[ranges.low[number] : ranges.high[number]]
            indices = bucket.item[past[liked[past]]].tolist()
            items = [self._items[index] for index in indices]
            item = self._items[bucket.item[groups.rows.low[number]]]
            text = template.written(item, items, common)
            if text is not None:
                rows.append(number)
                written.append((item, text))
                likes.append(indices)
        groups = groups.take(np.asarray(rows, np.int64))
        features = GroupFeatures(bucket, groups, self._shared)
        users = [self._users[user].id for user in bucket.user[groups.rows.low].tolist()]
        histories = self._histories(groups, features).to_pylist()
        return self._rows(
            kind,
            groups,
            {
                "text_id": [
                    f"{user}/{item.id}" for user, (item, _) in zip(users, written, strict=True)
                ],
                "text_index": group_id[rows],
                "user_id": users,
                "item_indices": [[item] for item in bucket.item[groups.rows.low].tolist()],
                "seen_indices": [[] for _ in rows],
                "liked_indices": likes,
                "source": [
                    template.source(history, item)
                    for history, (item, _) in zip(histories, written, strict=True)
                ],
                "prefix": [template.render_prefix(item) for item, _ in written],
                "target": [text.text for _, text in written],
                "features": [list(text.features) for _, text in written],
            },
        )

    # ---- candidates

    def shown(self, groups: Groups) -> Candidates:
        """The rows of the groups themselves, as candidates."""
        positions = groups.rows.numbers
        values = self._bucket.value[positions]
        offsets = groups.rows.offsets
        return Candidates(
            Ranges(offsets[:-1], offsets[1:]),
            self._bucket.item[positions],
            values,
            self._label.labels(values),
        )

    def with_negatives(
        self, groups: Groups, sampler: NegativeSampler, popularity: Popularity, number: int
    ) -> Candidates:
        """`shown`, each followed by `number` sampled negatives, or as many as there are."""
        bucket, timeline = self._bucket, self._bucket.timeline
        positions, ranges = bucket.seen(groups.history)
        seen = bucket.item[positions]
        epochs = epoch_of(timeline.count[groups.place], popularity.schedule)
        shown = self.shown(groups)
        items: list[int] = []
        values: list[float] = []
        labels: list[int] = []
        lengths = []
        for group, epoch in enumerate(epochs.tolist()):
            own = slice(shown.ranges.low[group], shown.ranges.high[group])
            positives = shown.items[own].tolist()
            first = groups.rows.low[group]
            user, time = self._users[bucket.user[first]].id, float(bucket.time[first])
            drawn = sampler.draw(
                popularity.cumulative[epoch],
                key=f"{user}:{time}:{self._items[positives[0]].id}",
                positives=positives,
                seen=seen[ranges.low[group] : ranges.high[group]].tolist(),
                moment=bucket.item[bucket.moment[first] : bucket.moment_end[first]].tolist(),
                count=number,
            )
            before = len(items)
            of_group = shown.values[own].tolist()
            for row in asked(drawn):
                items += [positives[row], *drawn[row]]
                values += [of_group[row]] + [math.nan] * len(drawn[row])
                labels += [1] + [0] * len(drawn[row])
            lengths.append(len(items) - before)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Candidates(
            Ranges(offsets[:-1], offsets[1:]),
            np.asarray(items, np.int64),
            np.asarray(values, np.float64),
            np.asarray(labels, np.int64),
        )

    # ---- text

    def _candidates(
        self,
        features: GroupFeatures,
        ranges: Ranges,
        items: np.ndarray,
        neighbours: tuple[np.ndarray, np.ndarray] | None,
    ) -> pa.Array:
        template = self._template.candidate_template
        told = features.of_candidates(template.fields, ranges.owners, items, neighbours)
        return render_all(
            template,
            len(items),
            self._sources(template.fields, items, self._items, told),
            lambda number: f"item '{self._items[items[number]].id}'",
        )

    def _of_users(self, groups: Groups, features: GroupFeatures) -> Mapping[str, object]:
        users = self._bucket.user[groups.rows.low].astype(np.int64)
        return {
            "user_id": distinct_texts([users], lambda n: self._users[users[n]].id),
            "user_index": users,
            "time": self._bucket.time[groups.rows.low],
            "history": self._histories(groups, features),
        }

    def _histories(self, groups: Groups, features: GroupFeatures) -> pa.ListArray:
        """`[profile, behaviour, ..., behaviour, context]` of each group."""
        if id(groups) not in self._known:  # views that are grouped alike have the same
            self._known[id(groups)] = groups, self._rendered_histories(groups, features)
        return self._known[id(groups)][1]

    def _rendered_histories(self, groups: Groups, features: GroupFeatures) -> pa.ListArray:
        size = len(groups)
        template = self._template
        users = self._bucket.user[groups.rows.low]
        profiles = render_all(
            template.profile_template,
            size,
            self._sources(
                template.profile_template.fields,
                users,
                self._users,
                features.of_users(template.profile_template.fields),
            ),
            lambda number: f"user '{self._users[users[number]].id}'",
        )
        texts, ranges = self._behaviours(groups)
        contexts = self._contexts(groups, features)
        # One dictionary of all three.
        columns = [column.dictionary_encode() for column in (profiles, texts, contexts)]
        dictionary = pa.concat_arrays([column.dictionary for column in columns])
        starts = np.cumsum([0, *(len(column.dictionary) for column in columns)])
        codes = [c.indices.to_numpy() + s for c, s in zip(columns, starts[:-1], strict=True)]
        offsets = ranges.offsets + 2 * np.arange(size + 1)
        found = np.empty(offsets[-1], np.int32)
        inner = np.ones(len(found), bool)
        for place, some in ((offsets[:-1], codes[0]), (offsets[1:] - 1, codes[2])):
            found[place] = some
            inner[place] = False
        found[inner] = codes[1]
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.DictionaryArray.from_arrays(found, dictionary)
        )

    def _behaviours(self, groups: Groups) -> tuple[pa.DictionaryArray, Ranges]:
        """Texts of the histories' events, those that say something, and each group's ones."""
        bucket, template = self._bucket, self._template
        fields = template.event_template.fields
        ranges = bucket.histories(groups, self._max_events)
        owners, events = ranges.owners, bucket.past[ranges.numbers]
        seconds = bucket.time[groups.rows.low][owners] - bucket.time[events]
        ages = np.zeros(len(events), np.int64)
        if "ago" in fields:
            ages = verbalize.age_classes(seconds)
        # Of each combination of item, outcome and age one event, and which each event has.
        first, combined = classes(bucket.item[events], self._outcomes.codes[events], ages)
        items = bucket.item[events[first]]
        outcomes = self._outcomes.codes[events[first]]
        _, of_age, age = np.unique(ages[first], return_index=True, return_inverse=True)
        told = [verbalize.ago(second) for second in seconds[first[of_age]].tolist()]
        sources = {
            "outcome": Source(outcomes, self._outcomes.values, "outcome"),
            "ago": Source(age, told, "ago"),
        }
        texts = render_all(
            template.event_template,
            len(first),
            self._sources(fields, items, self._items, sources),
            lambda number: f"item '{self._items[items[number]].id}'",
        )
        texts = texts if isinstance(texts, pa.StringArray) else texts.dictionary_decode()
        says = np.asarray(pc.binary_length(texts)) > 0
        found = pa.DictionaryArray.from_arrays(pa.array(combined, pa.int32()), texts)
        if says.all():
            return found, Ranges(ranges.offsets[:-1], ranges.offsets[1:])
        kept = says[combined]
        ends = np.cumsum(np.bincount(owners[kept], minlength=len(groups)))
        return found.filter(pa.array(kept)), Ranges(np.append(0, ends[:-1]), ends)

    @cached_property
    def _outcomes(self) -> Source:
        """The words for the value of each event of the bucket."""
        values, numbers = np.unique(self._bucket.value, return_inverse=True)
        texts = [self._template.outcome(value) for value in values.tolist()]
        known = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        codes = np.asarray([known[text] for text in texts], np.int64)
        return Source(codes[numbers], list(known))

    def _contexts(self, groups: Groups, features: GroupFeatures) -> pa.Array:
        times = self._bucket.time[groups.rows.low]
        template = self._template
        fields = template.context_template.fields
        if not fields:
            return distinct_texts([np.zeros(len(groups), np.int64)], lambda _: template.context(0))
        sources = features.of_users(fields)
        # What is told of a moment is the same for all of an hour.
        hours = np.floor(np.round(times, 6) / _SECONDS_OF_CONTEXT).astype(np.int64)
        hours -= hours.min(initial=0)
        return distinct_texts(
            [hours, *(source.codes for source in sources.values())],
            lambda n: template.context(
                float(times[n]), {k: v for s in sources.values() for k, v in s.at(n).items()}
            ),
        )

    def _sources(
        self,
        fields: Sequence[str],
        indices: np.ndarray,
        records: Sequence[User] | Sequence[Item],
        features: Mapping[str, Source],
    ) -> Mapping[str, Source]:
        """Where each field of a template comes from: a feature, or else the record."""
        own = Source(indices, _Attributes(records))
        return {field: features.get(field, own) for field in fields}

    def _rows(self, view: str, groups: Groups, columns: Mapping[str, object]) -> Rows:
        """A row of each group, with the columns and types of the view."""
        schema = views.schema(view)
        arrays = []
        for field in schema:
            column = columns[field.name]
            arrays.append(column if isinstance(column, pa.Array) else pa.array(column, field.type))
        return Rows(pa.table(arrays, names=schema.names), groups.part)


class _Attributes(Sequence[Mapping[str, Value]]):
    """The attributes of records, looked up when asked for."""

    def __init__(self, records: Sequence[User] | Sequence[Item]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Value]:  # type: ignore[override]
        return self._records[index].attributes


def _lists(ranges: Ranges, values: pa.Array | np.ndarray) -> pa.ListArray:
    if isinstance(values, np.ndarray):
        values = pa.array(values if values.dtype == np.float32 else values.astype(np.int64))
    return pa.ListArray.from_arrays(pa.array(ranges.offsets, pa.int32()), values)
