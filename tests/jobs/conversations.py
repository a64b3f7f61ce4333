"""Conversations with stubs in place of engines."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from m6rec_jax.data.store.prepared import Catalogue
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.jobs.conversation import Conversation, UserRead


def catalogue_of(items: Any, texts: Any, counts: Any = None) -> Catalogue:
    """Of items that were recommended so often; None: never."""
    none = np.zeros(len(items), np.int64)
    return Catalogue(items, texts, none > 0, none if counts is None else np.array(counts))


def converse(
    catalogue: Catalogue,
    *,
    user: Any = ((), ()),
    max_turns: int | None = None,
    named_items: int = 0,
    numbers: Any = None,
    reranker: Any = None,
    read_liked: Any = None,
    repeats_count: bool = False,
    **engines: Any,
) -> Conversation:
    """What `engines` talk about, by the part of a dialogue that each is for."""
    settings = TaskSettings(max_events=max_turns, named_items=named_items)
    resources: Any = SimpleNamespace(
        batch_sizes=(1,),
        settings=lambda _: settings,
        generator=engines.get,
        retriever=lambda: engines["retrieval"],
    )

    def known(liked: Any) -> UserRead:
        return read_liked(liked) if liked and read_liked else UserRead(*user, repeats_count)

    return Conversation(
        resources,
        {part: part for part in engines},
        catalogue,
        catalogue.texts,
        index=engines.get("retrieval"),
        reranker=reranker,
        known=known,
        reads_liked=read_liked is not None,
        **(numbers or {}),
    )
