"""The view 'documents': texts to continue or restore, of items and of what users did."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

from m6rec_jax.data.bucket_rows import BucketRows
from m6rec_jax.data.event_views.view import EventView, Rows
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.splits import TRAIN
from m6rec_jax.data.user_bucket import Groups
from m6rec_jax.text.column_text import distinct_texts
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate


class DocumentsView(EventView):
    """Of items each bucket has its share, but for those that are held out; they come first."""

    name = "documents"
    columns = "kind str, source str[], target str"

    def size(self, options: PrepareOptions, negatives: int) -> int:
        return options.document_events

    def rows(self, made: BucketRows, groups: Groups) -> Rows:
        job, buckets = made.job, made.job.buckets
        share = slice(job.num_old_items + buckets.index(made.number), None, len(buckets))
        of_items = [
            item_document(made.template, item)
            for item, held in zip(made.items[share], job.held_out[share], strict=True)
            if not held
        ]
        histories = made.histories(groups, made.features(groups))
        # Nothing stands before an item.
        offsets = np.append(np.zeros(len(of_items), np.int32), histories.offsets)
        columns = {
            "kind": [*(row["kind"] for row in of_items), *["behaviour"] * len(groups)],
            "source": pa.ListArray.from_arrays(offsets, histories.values),
            "target": [*(row["target"] for row in of_items), *_behaviours(made, groups)],
        }
        return Rows(columns, np.concatenate([np.full(len(of_items), TRAIN), groups.part]))


def _behaviours(made: BucketRows, groups: Groups) -> list[str]:
    """What users did in each group, each event with its outcome in words."""
    positions = groups.rows.numbers
    items, outcomes = made.bucket.item[positions], made.outcomes
    candidates = distinct_texts(
        [items], lambda n: item_in_document(made.template, made.items[items[n]])
    )
    codes = outcomes.codes[positions]
    told = candidates.to_pylist()
    texts = distinct_texts(
        [codes, np.asarray(candidates.dictionary_encode().indices)],
        lambda n: sentence(f"{sentence(told[n])} {outcomes.values[codes[n]]}"),
    ).to_pylist()
    bounds = itertools.pairwise(groups.rows.offsets.tolist())
    return [" ".join(texts[start:end]) for start, end in bounds]


def item_document(template: DatasetTemplate, item: Item) -> dict[str, Any]:
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
