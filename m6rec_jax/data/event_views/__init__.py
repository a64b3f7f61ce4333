"""The views of users, items and events: each is one file, and named here."""

from collections.abc import Mapping

from m6rec_jax.data.event_views.catalogue import CatalogueView
from m6rec_jax.data.event_views.documents import DocumentsView
from m6rec_jax.data.event_views.groups import GroupsView
from m6rec_jax.data.event_views.next_items import NextItemsView
from m6rec_jax.data.event_views.reranking import RerankingView
from m6rec_jax.data.event_views.view import EventView
from m6rec_jax.data.event_views.writing import WritingView
from m6rec_jax.text.writing_templates import WRITING

__all__ = ["EVENT_VIEWS", "EventView"]

EVENT_VIEWS: Mapping[str, EventView] = {
    view.name: view
    for view in (
        GroupsView(),
        NextItemsView(),
        RerankingView(),
        DocumentsView(),
        CatalogueView(),
        *map(WritingView, WRITING),
    )
}
