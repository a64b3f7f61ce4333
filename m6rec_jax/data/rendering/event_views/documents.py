"""The view 'documents': texts to continue or restore, of items and of what users did."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features.user_events import Groups
from m6rec_jax.data.rendering.event_views.view import Rows, View
from m6rec_jax.data.rendering.shard_rows import ShardRows
from m6rec_jax.data.splitting.splits import TRAIN
from m6rec_jax.text.column_text import distinct_texts
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate

# Behaviours in the target of a document, at most.
SIZE = 4


def _rows(shard: ShardRows, groups: Groups) -> Rows:
    """Each shard has its share of the items, but for those that are held out; they come first."""
    job = shard.job
    share = slice(shard.first_new + shard.place, None, len(job.shards))
    of_items = [
        item_document(shard.template, item)
        for item, held_out in zip(shard.items[share], job.held_out[share], strict=True)
        if not held_out
    ]
    histories = shard.histories(groups, shard.features(groups))
    # Nothing stands before an item.
    offsets = np.append(np.zeros(len(of_items), np.int32), histories.offsets)
    columns = {
        "kind": [*["item"] * len(of_items), *["behaviour"] * len(groups)],
        "source": pa.ListArray.from_arrays(offsets, histories.values),
        "target": [*of_items, *_behaviours(shard, groups)],
    }
    return Rows(columns, np.concatenate([np.full(len(of_items), TRAIN), groups.part]))


def _behaviours(shard: ShardRows, groups: Groups) -> list[str]:
    """What users did in each group, each event with its outcome in words."""
    positions = groups.rows.numbers
    items, outcomes = shard.bucket.item[positions], shard.outcomes
    candidates = distinct_texts(
        [items], lambda n: item_in_document(shard.template, shard.items[items[n]])
    )
    codes, of_items = outcomes.codes[positions], candidates.to_pylist()
    texts = distinct_texts(
        [codes, np.asarray(candidates.dictionary_encode().indices)],
        lambda n: sentence(f"{sentence(of_items[n])} {outcomes.values[codes[n]]}"),
    ).to_pylist()
    bounds = itertools.pairwise(groups.rows.offsets.tolist())
    return [" ".join(texts[start:end]) for start, end in bounds]


def item_document(template: DatasetTemplate, item: Item) -> str:
    """A document: the item in the wording of the catalogue, then every other attribute."""
    others = [
        sentence(f"{name.replace('_', ' ')}: {text_of(value)}")
        for name, value in item.attributes.items()
        if name not in template.item_template.fields and text_of(value)
    ]
    return " ".join([sentence(template.item(item)), *others])


def item_in_document(template: DatasetTemplate, item: Item) -> str:
    """The text of an item that a user acted on: of a candidate, if there are candidates."""
    return template.candidate(item) if template.has_candidates else template.item(item)


def sentence(text: str) -> str:
    """Ends a text with a full stop, unless it ends a sentence already or is empty."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."


DOCUMENTS = View(
    "documents", 3, "kind str, source str[], target str", _rows, lambda options, negatives: SIZE
)
