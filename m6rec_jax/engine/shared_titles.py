"""Which of the items that share a title comes first: the two towers say.

Only those items are embedded, so a large catalogue with few shared titles costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from m6rec_jax.engine.retrieval import Retriever
from m6rec_jax.engine.title_trie import ItemScores, TitleTrie


class SharedTitles:
    """Similarities of histories and items that share a title, for `Generator.recommend`.

    Args:
      retriever: of the two towers.
      trie: of the catalogue.
      texts: of the catalogue, as the item tower reads them.
      task: by whose prompts users and items are embedded; None: the retriever's default one.
    """

    def __init__(
        self, retriever: Retriever, trie: TitleTrie, texts: Sequence[str], task: str | None = None
    ) -> None:
        self._retriever, self._task = retriever, task
        self._places = trie.shared_places()
        if len(self._places):
            self._index = retriever.index([texts[place] for place in self._places], task)

    def item_scores(self, histories: Sequence[Sequence[str]]) -> list[ItemScores] | None:
        """Per history what orders items of one title; None where no title is shared.

        Args:
          histories: as for `Retriever.embed_users`.
        """
        if not len(self._places) or not histories:
            return None
        tasks = None if self._task is None else [self._task] * len(histories)
        return [self._scores(user) for user in self._retriever.embed_users(histories, tasks)]

    def _scores(self, user: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        of_shared = self._index.scores_of(user)
        return lambda places: of_shared(np.searchsorted(self._places, places))
