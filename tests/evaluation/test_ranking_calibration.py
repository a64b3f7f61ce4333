"""`m6rec calibrate` of retrieval: what it leaves is what evaluation and requests order by."""

import json
from pathlib import Path

import gin
import numpy as np
import pytest

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.engine.index.ranking_weights import RankingWeights
from m6rec_jax.engine.model_folder import load_model, read_ranking
from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.evaluation.calibration import Learnt, calibrate, learn_weights, report
from m6rec_jax.evaluation.checkpoint_evaluation import evaluate
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.evaluation.reranking import Reranking
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.jobs.job import Evaluation
from m6rec_jax.jobs.past_items import past_of_rows
from m6rec_jax.jobs.retrieval import RetrievalPredictions, baseline_ranks
from m6rec_jax.pipeline.registration import register_recommendation_tasks, task_info, unregister
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.service import Service, ServiceOptions
from tests.evaluation.small_model import small_model
from tests.tasks import shop

LENGTHS = {"inputs": 64, "targets": 24}
TASK = "ranked_shop_retrieval"


@pytest.fixture
def model_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run on the shop, whose tasks are registered."""
    (prepared,) = shop.prepare_shop(tmp_path / "data")
    vocabulary = shop.shop_vocabulary(prepared.folder / "vocabulary.model")
    small_model(vocabulary, tmp_path / "run", 1, num_prompts=3, retrieval_dim=8)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "data"))
    names = register_recommendation_tasks("ranked_shop", "tiny-shop", split="leave_one_out")
    save_task_assets(tmp_path / "run", TASK, LENGTHS)
    yield tmp_path / "run"
    unregister(names)
    gin.clear_config()


def request(number: int, behaviours: int) -> dict:
    """What user `number` of the shop did at first, and when the next event was."""
    user, age = shop.USERS[number]
    events = [
        {
            "item": shop.FILMS[(number + k) % 6][0],
            "time": shop.START + k * shop.DAY + number * 60,
            "value": shop.RATINGS[(number + k) % 6],
        }
        for k in range(behaviours + 1)
    ]
    then = events.pop()["time"]
    return {"user": {"id": user, "age": age}, "time": then, "history": events}


def check_baselines(evaluation: Evaluation, predictions: RetrievalPredictions) -> None:
    """Co-occurrence and EASE, item by item: what they say, then popularity."""
    prepared = task_info(TASK).prepared()
    ranks, counts = baseline_ranks(evaluation, predictions), prepared.catalogue().train_counts
    past = past_of_rows(evaluation, predictions.users, predictions.targets)
    for name, source in (("co_occurrence", prepared.co_occurrence()), ("ease", prepared.ease())):
        for row, (wanted,) in enumerate(predictions.targets.tolist()):
            hidden = np.setdiff1d(past[row], [wanted])
            found = source.related(past[row], hidden)
            values = dict(zip(found.items.tolist(), found.shares.tolist(), strict=True))
            order = sorted(
                set(range(len(counts))) - set(hidden.tolist()),
                key=lambda item: (-values.get(item, -1.0), -counts[item], item),
            )
            assert ranks[name][row, 0] == order.index(wanted) + 1


def test_weights_are_learnt_and_order_what_is_evaluated_and_served(
    model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="learn on the rows that are reported"):
        calibrate(str(model_dir), TASK, LENGTHS, split="test")
    before = load_model(model_dir)
    assert before.settings.tasks[TASK].ranking is None
    path, other = model_dir / "inference" / "ranking.json", {"known": {}, "new": {}}
    path.write_text(json.dumps({"step": 3, "tasks": {TASK: other, "other": other}}))
    found = calibrate(str(model_dir), TASK, LENGTHS, batch_size=3)
    one = found[TASK]
    assert isinstance(one, Learnt)
    assert (one.num_rows, one.facts["num_found"]) == (4, 4)
    assert f"{TASK}: ndcg@10 {one.quality:.4f} instead of" in report(found)

    model = load_model(model_dir)
    weights = read_ranking(model_dir, 3)[TASK]
    assert json.loads(path.read_text())["tasks"]["other"] == other  # learnt before
    assert model.settings.tasks[TASK].ranking == weights
    assert weights == one.settings
    assert weights.known["similarity"] != 0
    # An index that was built before stays good.
    assert model.fingerprint(TASK) == before.fingerprint(TASK)

    evaluator = Evaluator(TASK, LENGTHS, 3, ks=(1, 5), reranking=Reranking())
    unlearnt = evaluator.predict(task_info(TASK), model.model, model.variables)
    evaluator.ranking = {TASK: weights}
    evaluated = evaluator.predict(task_info(TASK), model.model, model.variables)
    assert np.abs(unlearnt.scores[:, 0] - evaluated.scores[:, 0]).max() > 1e-3
    # Weights that were learnt are used unasked, and what the towers alone do stands beside it.
    plain = Evaluator(TASK, LENGTHS, 3, ks=(1, 5))
    towers = plain.predict(task_info(TASK), model.model, model.variables)
    assert "two_towers" not in plain.baselines(task_info(TASK), towers)
    rest = read_ranking(model_dir, 3)[f"{TASK}/without_towers"]
    plain.ranking = {TASK: weights, f"{TASK}/without_towers": rest}
    hybrid = plain.predict(task_info(TASK), model.model, model.variables)
    np.testing.assert_array_equal(hybrid.scores, evaluated.scores)
    np.testing.assert_array_equal(hybrid.towers_ranks, towers.ranks)
    beside = plain.baselines(task_info(TASK), hybrid)["two_towers"]
    assert beside["mrr"] == plain.metrics(task_info(TASK), towers)["mrr"]
    plain.reranking, plain.ranking = Reranking(towers=False), {f"{TASK}/without_towers": rest}
    without_model = plain.predict(task_info(TASK), model.model, model.variables)
    np.testing.assert_array_equal(hybrid.rest_ranks, without_model.ranks)
    check_baselines(plain.evaluation(task_info(TASK)), hybrid)

    build_index(tmp_path / "index", model_dir, task=TASK, progress=False)
    service = Service.open(model_dir, options=ServiceOptions(index=str(tmp_path / "index")))
    for user, items, scores in zip(
        evaluated.users, evaluated.top_items, evaluated.scores, strict=True
    ):
        accepted = service.accept(request(int(user), 4), task=TASK, job="reranking")
        assert isinstance(accepted, Accepted)
        (served,) = service.answer([accepted])
        assert list(served.values["item_ids"]) == [
            shop.FILMS[item][0] for item in items if item >= 0
        ]
        np.testing.assert_allclose(served.values["scores"], scores[items >= 0], atol=1e-4)
    assert service.handler(TASK, "reranking").describe()["reranker"]["known"] == weights.known

    # Without the towers nothing that they say has a part in the order.
    alone = Reranking(towers=False)
    evaluator = Evaluator(TASK, LENGTHS, 3, ks=(1, 5), reranking=alone)
    (named,) = learn_weights(evaluator, task_info(TASK), load_model(model_dir)).items()
    name, learnt = named
    assert name == f"{TASK}/without_towers"  # so that no other weights are served
    assert learnt.settings.known["similarity"] == learnt.settings.new["similarity"] == 0
    assert (evaluator.sample, evaluator.reranking) == (0, alone)
    evaluator.ranking = {name: weights}
    without = evaluator.predict(task_info(TASK), model.model, model.variables)
    zeroed = {
        kind: {name: 0.0 if name == "similarity" else value for name, value in own.items()}
        for kind, own in (("known", weights.known), ("new", weights.new))
    }
    evaluator.reranking, evaluator.ranking = Reranking(), {TASK: RankingWeights(**zeroed)}
    same = evaluator.predict(task_info(TASK), model.model, model.variables)
    np.testing.assert_allclose(
        np.sort(without.scores, axis=1), np.sort(same.scores, axis=1), atol=1e-5
    )
    assert (without.ranks <= without.num_ranked[:, None]).all()

    # Nor does it stand for the towers alone, or its figures for the run's.
    gin.bind_parameter("Reranking.towers", False)
    told = {"known": weights.known, "new": weights.new}
    path.write_text(json.dumps({"step": 3, "tasks": {TASK: told}}))
    with pytest.raises(ConfigError, match=r"nothing was learnt without the towers .*calibrate"):
        evaluate(str(model_dir), TASK, LENGTHS, batch_size=3)
    path.write_text(json.dumps({"step": 3, "tasks": {TASK: told, name: told}}))
    evaluate(str(model_dir), TASK, LENGTHS, batch_size=3)
    (written,) = (model_dir / "evaluation").iterdir()
    assert written.name == f"{TASK}-test-3-without_towers.json"

    # Of another step they are of no use.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 1}))
    assert load_model(model_dir).settings.tasks[TASK].ranking is None
    assert "was made for step 1, not 3" in caplog.text
