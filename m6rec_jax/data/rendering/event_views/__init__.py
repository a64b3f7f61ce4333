"""The views of users, items and events: each is one file, and named here."""

from collections.abc import Mapping

from m6rec_jax.data.rendering.event_views.documents import DOCUMENTS
from m6rec_jax.data.rendering.event_views.groups import GROUPS
from m6rec_jax.data.rendering.event_views.next_items import NEXT_ITEMS
from m6rec_jax.data.rendering.event_views.view import View
from m6rec_jax.data.rendering.event_views.writing import WRITING_VIEWS

EVENT_VIEWS: Mapping[str, View] = {
    view.name: view for view in (GROUPS, NEXT_ITEMS, DOCUMENTS, *WRITING_VIEWS)
}
