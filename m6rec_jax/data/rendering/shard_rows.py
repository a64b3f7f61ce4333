"""What the rows of the views are made of, for the users of one shard.

Text is rendered by the templates that serving renders with, each distinct text once
(`text.column_text`): a behaviour of a history differs by item, outcome and age in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data.features.features import Features
from m6rec_jax.data.features.user_events import Groups, Ranges
from m6rec_jax.data.splitting.negatives import NegativeSampler
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source, classes, distinct_texts, render_all
from m6rec_jax.text.records import Value

if TYPE_CHECKING:
    from m6rec_jax.data.shard_job import Job

_SECONDS_OF_CONTEXT = 3600.0


class ShardRows:
    """See the module. `answers` are what pairs of items say of the candidates of 'groups' `[2,
    items]`, if counted.

    Attributes:
      bucket: the events of the shard.
      place: of the shard among those that have events.
      first_new: items from this one on are in no document yet.
      sampler: draws negatives of 'groups'; never held-out items.
    """

    def __init__(self, job: Job, shard: int, answers: np.ndarray | None = None) -> None:
        self.job, self.place, self.bucket = job, job.shards.index(shard), job.bucket(shard)
        self.answers = answers
        self.template, self.label = job.template, job.dataset.spec.label
        self.users, self.items = job.dataset.user_records, job.dataset.item_records
        self._user_values = [user.attributes for user in self.users]
        self._item_values = [item.attributes for item in self.items]
        self.max_events = job.options.max_events or 0  # known by now
        self.first_new = 0 if job.past is None else job.past.num_items
        never = np.flatnonzero(job.held_out).tolist()
        self.sampler = NegativeSampler(len(self.items), job.options.negative_power, never)
        self._histories: dict[int, tuple[Groups, pa.ListArray]] = {}

    def features(self, groups: Groups) -> Features:
        """Statistics of the users of groups, and of candidates."""
        everybody, times = self.job.everybody, self.bucket.time[groups.rows.low]
        return Features(
            everybody, self.bucket, groups.known, groups.place, times, everybody.item_values
        )

    def candidate_texts(self, features: Features, ranges: Ranges, items: np.ndarray) -> pa.Array:
        """The text of each candidate of 'groups'; the ranges are those of the groups."""
        template = self.template.candidate_template
        words = features.of_candidates(template.fields, ranges.owners, items, self.answers)
        return render_all(
            template,
            len(items),
            _sources(template.fields, items, self._item_values, words),
            lambda number: f"item '{self.items[items[number]].id}'",
        )

    def of_users(self, groups: Groups, features: Features) -> Mapping[str, Any]:
        """The columns `view.OF_USER` of groups."""
        users = self.bucket.user[groups.rows.low].astype(np.int64)
        return {
            "user_id": distinct_texts([users], lambda n: self.users[users[n]].id),
            "user_index": users,
            "time": self.bucket.time[groups.rows.low],
            "history": self.histories(groups, features),
        }

    def histories(self, groups: Groups, features: Features) -> pa.ListArray:
        """`[profile, behaviour, ..., behaviour, context]` of each group."""
        if id(groups) not in self._histories:  # views that are grouped alike have the same
            self._histories[id(groups)] = groups, self._rendered_histories(groups, features)
        return self._histories[id(groups)][1]

    def _rendered_histories(self, groups: Groups, features: Features) -> pa.ListArray:
        template = self.template.profile_template
        users = self.bucket.user[groups.rows.low]
        words = features.of_users(template.fields)
        profiles = render_all(
            template,
            len(groups),
            _sources(template.fields, users, self._user_values, words),
            lambda number: f"user '{self.users[users[number]].id}'",
        )
        behaviours, owners = self._behaviours(groups)
        texts = [profiles, behaviours, self._contexts(groups, features)]
        # Encoded as one: a text is the same in all three.
        encoded = pa.chunked_array([column.dictionary_encode() for column in texts])
        one = encoded.unify_dictionaries().combine_chunks()
        every = np.arange(len(groups))
        order = np.argsort(np.concatenate([every, owners, every]), kind="stable")
        ends = np.cumsum(np.bincount(owners, minlength=len(groups)) + 2)
        return lists(np.append(0, ends), one.take(pa.array(order)))

    def _behaviours(self, groups: Groups) -> tuple[pa.DictionaryArray, np.ndarray]:
        """Texts of the histories' events, those that say something, and the group of each."""
        bucket, template = self.bucket, self.template.event_template
        ranges = groups.history.last(self.max_events)
        owners, events = ranges.owners, bucket.past[ranges.numbers]
        seconds = bucket.time[groups.rows.low][owners] - bucket.time[events]
        ages = np.zeros(len(events), np.int64)
        if "ago" in template.fields:
            ages = verbalize.age_classes(seconds)
        # Of each combination of item, outcome and age one event, and which each event has.
        first, combined = classes(bucket.item[events], self.outcomes.codes[events], ages)
        items = bucket.item[events[first]]
        _, of_age, age = np.unique(ages[first], return_index=True, return_inverse=True)
        ago = [verbalize.ago(second) for second in seconds[first[of_age]].tolist()]
        words = {
            "outcome": Source(self.outcomes.codes[events[first]], self.outcomes.values, "outcome"),
            "ago": Source(age, ago, "ago"),
        }
        texts = render_all(
            template,
            len(first),
            _sources(template.fields, items, self._item_values, words),
            lambda number: f"item '{self.items[items[number]].id}'",
        )
        texts = texts if isinstance(texts, pa.StringArray) else texts.dictionary_decode()
        behaviours = pa.DictionaryArray.from_arrays(pa.array(combined, pa.int32()), texts)
        says = (np.asarray(pc.binary_length(texts)) > 0)[combined]
        return behaviours.filter(pa.array(says)), owners[says]

    @cached_property
    def outcomes(self) -> Source:
        """The words for the value of each event of the shard."""
        values, numbers = np.unique(self.bucket.value, return_inverse=True)
        texts = [self.template.outcome(value) for value in values.tolist()]
        known = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        codes = np.asarray([known[text] for text in texts], np.int64)
        return Source(codes[numbers], list(known))

    def _contexts(self, groups: Groups, features: Features) -> pa.Array:
        times, template = self.bucket.time[groups.rows.low], self.template
        fields = template.context_template.fields
        if not fields:
            return distinct_texts([np.zeros(len(groups), np.int64)], lambda _: template.context(0))
        sources = features.of_users(fields)
        # What is said of a moment is the same for all of an hour.
        hours = np.floor(np.round(times, 6) / _SECONDS_OF_CONTEXT).astype(np.int64)
        hours -= hours.min(initial=0)
        return distinct_texts(
            [hours, *(source.codes for source in sources.values())],
            lambda n: template.context(
                float(times[n]), {k: v for s in sources.values() for k, v in s.at(n).items()}
            ),
        )


def _sources(
    fields: Sequence[str],
    indices: np.ndarray,
    records: Sequence[Mapping[str, Value]],
    features: Mapping[str, Source],
) -> Mapping[str, Source]:
    """Where each field of a template comes from: a feature, or else the record."""
    of_records = Source(indices, records)
    return {field: features.get(field, of_records) for field in fields}


def lists(offsets: np.ndarray, values: pa.Array | np.ndarray) -> pa.ListArray:
    """A column of lists: of row i the values from `offsets[i]` to below `offsets[i + 1]`."""
    if isinstance(values, np.ndarray):
        values = pa.array(values if values.dtype == np.float32 else values.astype(np.int64))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
