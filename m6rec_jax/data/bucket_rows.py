"""What the rows of the views are made of, for the users of one bucket.

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

from m6rec_jax.data.features import Features
from m6rec_jax.data.past_events import Ranges
from m6rec_jax.data.user_bucket import Groups, UserBucket
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source, classes, distinct_texts, render_all
from m6rec_jax.text.records import Item, User, Value

if TYPE_CHECKING:
    from m6rec_jax.data.bucket_job import Job

_SECONDS_OF_CONTEXT = 3600.0


class BucketRows:
    """See the module.

    Args:
      job: of the preparation.
      number: of the bucket.
      bucket: its events.
    """

    def __init__(self, job: Job, number: int, bucket: UserBucket) -> None:
        self.job, self.number, self.bucket = job, number, bucket
        self.template, self.label = job.template, job.dataset.spec.label
        self.users, self.items = job.dataset.user_records, job.dataset.item_records
        max_events = job.options.max_events
        assert max_events is not None, "with_history_length"
        self.max_events = max_events
        self._known: dict[int, tuple[Groups, pa.ListArray]] = {}

    def features(self, groups: Groups) -> Features:
        """Statistics of the users of groups, and of candidates."""
        everybody, times = self.job.everybody, self.bucket.time[groups.rows.low]
        return Features(
            everybody, self.bucket, groups.known, groups.place, times, everybody.item_values
        )

    def numbers(self, view: str, groups: Groups) -> np.ndarray:
        """Numbers of a view's groups over all users `[groups]`."""
        first = np.load(self.job.folder / f"first_group-{view}.npy", mmap_mode="r")
        users = self.bucket.user[groups.rows.low]
        return first[users] + np.arange(len(users)) - np.searchsorted(users, users)

    def candidate_texts(
        self,
        features: Features,
        ranges: Ranges,
        items: np.ndarray,
    ) -> pa.Array:
        """The text of each candidate of 'groups'; the ranges are those of the groups."""
        template = self.template.candidate_template
        pairs = self.job.answers(self.number)
        told = features.of_candidates(template.fields, ranges.owners, items, pairs)
        return render_all(
            template,
            len(items),
            self._sources(template.fields, items, self.items, told),
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
        if id(groups) not in self._known:  # views that are grouped alike have the same
            self._known[id(groups)] = groups, self._rendered_histories(groups, features)
        return self._known[id(groups)][1]

    def _rendered_histories(self, groups: Groups, features: Features) -> pa.ListArray:
        size = len(groups)
        template = self.template
        users = self.bucket.user[groups.rows.low]
        profiles = render_all(
            template.profile_template,
            size,
            self._sources(
                template.profile_template.fields,
                users,
                self.users,
                features.of_users(template.profile_template.fields),
            ),
            lambda number: f"user '{self.users[users[number]].id}'",
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
        bucket, template = self.bucket, self.template
        fields = template.event_template.fields
        ranges = bucket.histories(groups, self.max_events)
        owners, events = ranges.owners, bucket.past[ranges.numbers]
        seconds = bucket.time[groups.rows.low][owners] - bucket.time[events]
        ages = np.zeros(len(events), np.int64)
        if "ago" in fields:
            ages = verbalize.age_classes(seconds)
        # Of each combination of item, outcome and age one event, and which each event has.
        first, combined = classes(bucket.item[events], self.outcomes.codes[events], ages)
        items = bucket.item[events[first]]
        outcomes = self.outcomes.codes[events[first]]
        _, of_age, age = np.unique(ages[first], return_index=True, return_inverse=True)
        told = [verbalize.ago(second) for second in seconds[first[of_age]].tolist()]
        sources = {
            "outcome": Source(outcomes, self.outcomes.values, "outcome"),
            "ago": Source(age, told, "ago"),
        }
        texts = render_all(
            template.event_template,
            len(first),
            self._sources(fields, items, self.items, sources),
            lambda number: f"item '{self.items[items[number]].id}'",
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
    def outcomes(self) -> Source:
        """The words for the value of each event of the bucket."""
        values, numbers = np.unique(self.bucket.value, return_inverse=True)
        texts = [self.template.outcome(value) for value in values.tolist()]
        known = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        codes = np.asarray([known[text] for text in texts], np.int64)
        return Source(codes[numbers], list(known))

    def _contexts(self, groups: Groups, features: Features) -> pa.Array:
        times = self.bucket.time[groups.rows.low]
        template = self.template
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


class _Attributes(Sequence[Mapping[str, Value]]):
    """The attributes of records, looked up when asked for."""

    def __init__(self, records: Sequence[User] | Sequence[Item]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Value]:  # type: ignore[override]
        return self._records[index].attributes


def lists(ranges: Ranges, values: pa.Array | np.ndarray) -> pa.ListArray:
    """A column of lists: of each row the values in its range."""
    if isinstance(values, np.ndarray):
        values = pa.array(values if values.dtype == np.float32 else values.astype(np.int64))
    return pa.ListArray.from_arrays(pa.array(ranges.offsets, pa.int32()), values)
