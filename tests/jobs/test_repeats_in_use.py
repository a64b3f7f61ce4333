"""What requests about data with repeats are answered: nothing is hidden, two rates of negatives."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from m6rec_jax.data.splitting.negatives import corrected_probability
from m6rec_jax.engine.candidates.scoring import served_probability
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.jobs.answering import Accepted, CatalogueHandler, Handler
from m6rec_jax.jobs.scoring import ScoringAnswers
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import Request
from m6rec_jax.text.records import Event, Item, User
from m6rec_jax.text.templates import DatasetTemplate
from tests.data.fold import FoldedStatistics

TEMPLATE = {"event": "{title}", "candidate": "{title}", "item": "{title}"}
ITEMS = [Item(id_, {"title": id_}) for id_ in "abc"]
PREDICTED = np.array([0.2, 0.3, 0.4], np.float32)


def answers(settings: TaskSettings) -> ScoringAnswers:
    """With a scorer that always predicts the same."""
    statistics = FoldedStatistics()
    statistics.update(Event("u", "a", 1.0), ITEMS[0])
    known = statistics.now()

    def score_requests(*asked: Any) -> list[np.ndarray]:
        (repeats,), rates = asked[-1], np.array(settings.sampling_rates)
        return [served_probability(PREDICTED, np.array(repeats), rates).astype(np.float32)]

    scorer = SimpleNamespace(score_requests=score_requests)
    handler: ScoringAnswers = object.__new__(ScoringAnswers)
    handler.task, handler.resources = (
        "ctr",
        SimpleNamespace(settings=lambda task: settings),  # type: ignore[assignment]
    )
    handler._scorer = scorer  # type: ignore[assignment]
    handler.renderer = RequestRenderer(DatasetTemplate.parse(TEMPLATE, "here"), known)
    return handler


def test_what_the_user_had_is_corrected_by_its_own_rate() -> None:
    """By the statistics of a known user, and by what a request tells."""
    request = Request(User("u"), 9.0, ((Event("u", "c", 5.0), ITEMS[2]),), tuple(ITEMS))

    def answer(**rates: float) -> Any:
        handler = answers(TaskSettings(**rates))  # type: ignore[arg-type]
        text = RequestText(["history"], list("abc"))
        return handler.answer([Accepted(handler, request, text)])[0]

    found = answer(sampling_rate=0.01)
    np.testing.assert_allclose(
        found.values["probabilities"], corrected_probability(PREDICTED, 0.01), 1e-5
    )
    found = answer(sampling_rate=0.01, repeat_sampling_rate=0.5)
    expected = [
        corrected_probability(p, rate) for p, rate in zip(PREDICTED, (0.5, 0.01, 0.5), strict=True)
    ]
    np.testing.assert_allclose(found.values["probabilities"], expected, 1e-5)
    assert found.values["probabilities"].dtype == np.float32


class Recommends(CatalogueHandler):
    answer = warm_up = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("repeats_count", "given", "hides"),
    [(True, None, False), (False, None, True), (True, True, True), (False, False, False)],
)
def test_what_the_user_had_is_hidden_as_the_data_say(
    monkeypatch, repeats_count, given, hides
) -> None:
    data = SimpleNamespace(spec=SimpleNamespace(repeats_count=repeats_count))
    monkeypatch.setattr(Handler, "__init__", lambda self, *_: setattr(self, "data", data))
    handler = Recommends(None, "next", 1, 2, given)  # type: ignore[arg-type]
    history = ((Event("u", "c", 5.0), ITEMS[2]),)
    request = Request(User("u"), 9.0, history, exclude=("a",), unknown=("z",))
    assert handler.excluded(request) == ["c", "z"] * hides + ["a"]
