"""Evaluation from a checkpoint over the prepared tiny shop."""

import dataclasses
import json
import shutil

import gin
import numpy as np
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.catalogue_index import TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation import checkpoint_evaluation as of_checkpoint
from m6rec_jax.evaluation import evaluator as evaluation
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.evaluation.reranking import Reranking, learnt_weights, reranked
from m6rec_jax.jobs.retrieval import Retrieval, RetrievalPredictions
from m6rec_jax.metrics import classification, ranking
from m6rec_jax.metrics.baselines import MEAN_BASELINES
from m6rec_jax.pipeline.prepared_rows import past_items, read_rows
from m6rec_jax.pipeline.registration import register_recommendation_tasks, task_info, unregister
from tests.evaluation.small_model import small_model
from tests.tasks import shop

LENGTHS = {"inputs": 64, "targets": 24}
OPTIONS = EngineOptions(64, 24)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(prepared shop, vocabulary, model, variables, MODEL_DIR), with the tasks registered."""
    folder = tmp_path_factory.mktemp("data")
    (prepared,) = shop.prepare_shop(folder)
    vocabulary = shop.shop_vocabulary(prepared.folder / "vocabulary.model")
    model_dir = tmp_path_factory.mktemp("model")
    prompts = {"num_prompts": 3, "num_options": 2, "head": "option", "retrieval_dim": 8}
    model, variables = small_model(vocabulary, model_dir, 1, **prompts)
    patch = pytest.MonkeyPatch()
    patch.setenv(DATA_DIR_VARIABLE, str(folder))
    names = register_recommendation_tasks("eval_shop", "tiny-shop", split="leave_one_out")
    yield prepared, vocabulary, model, variables, model_dir
    unregister(names)
    patch.undo()
    gin.clear_config()


def test_scoring_equals_the_scorer(world):
    prepared, vocabulary, model, variables, model_dir = world
    metrics = of_checkpoint.evaluate(str(model_dir), "eval_shop_ctr", LENGTHS, batch_size=3)
    rows = list(read_rows(prepared, "groups", "test"))
    scorer = Scorer(model, variables, vocabulary, OPTIONS)
    scores = scorer.score_requests([r["history"] for r in rows], [r["candidates"] for r in rows])
    labels = np.concatenate([r["labels"] for r in rows])
    assert metrics["num_examples"] == len(labels) == 4
    assert metrics["auc"] == classification.auc(labels, np.concatenate(scores))
    assert metrics["log_loss"] == pytest.approx(
        classification.log_loss(labels, np.concatenate(scores)), abs=1e-5
    )
    file = model_dir / "evaluation" / "eval_shop_ctr-test-3.json"
    assert json.loads(file.read_text()) == metrics
    of_checkpoint.evaluate(str(model_dir), "eval_shop_ctr", LENGTHS, batch_size=3, limit=3)
    assert json.loads(file.read_text()) == metrics  # of all rows still
    of_three = json.loads(file.with_name("eval_shop_ctr-test-3-first3.json").read_text())
    assert of_three["num_examples"] < metrics["num_examples"]


def test_retrieval_equals_a_ranking_by_hand(world):
    prepared, vocabulary, model, variables, model_dir = world
    metrics = of_checkpoint.evaluate(
        str(model_dir), "eval_shop_retrieval", LENGTHS, split="validation", batch_size=3
    )
    rows = list(read_rows(prepared, "next_items", "validation"))
    retriever = Retriever(model, variables, vocabulary, OPTIONS)
    users = retriever.embed_users([r["history"] for r in rows])
    scores = users @ retriever.embed_items(prepared.catalogue().texts).T
    hidden = np.zeros(scores.shape, bool)
    for i, row in enumerate(rows):
        train = read_rows(prepared, "next_items", "train")
        own = [r["item_indices"] for r in train if r["user_index"] == row["user_index"]]
        hidden[i, np.concatenate(own)] = True
        assert hidden[i].sum() == 4  # of six films four are in training, two are left
    targets = np.array([r["item_indices"][0] for r in rows])
    ranks = ranking.ranks_by_score(scores, targets, hidden)
    assert set(ranks.tolist()) <= {1, 2}
    assert metrics["hit_rate@1"] == ranking.hit_rate(ranks, 1)
    assert metrics["mrr"] == ranking.reciprocal_ranks(ranks).mean()
    assert metrics["hit_rate@5"] == 1
    counts = np.broadcast_to(prepared.catalogue().train_counts.astype(float), scores.shape)
    popular = ranking.ranks_by_score(counts, targets, hidden)
    assert metrics["popularity/mrr"] == ranking.reciprocal_ranks(popular).mean()


@pytest.mark.parametrize("sample", [0, 9])
def test_processes_share_the_rows_of_a_limit(world, monkeypatch, sample):
    read = []
    for process in range(2):
        monkeypatch.setattr(evaluation, "batch_reader", lambda mesh, own=process: (own, 2))
        evaluator = evaluation.Evaluator(
            "eval_shop_ctr", LENGTHS, 4, split="train", limit=4, sample=sample
        )
        (task,) = evaluator.tasks
        for batch in evaluator.batches(task):
            real = batch["example_weights"] > 0
            items = batch["decoder_item_ids"][real].max(axis=1)
            read += zip(batch["user_ids"][real, 0].tolist(), items.tolist(), strict=True)
    rows = evaluator.evaluation(task).rows(("user_index", "item_indices"))
    assert [(row["user_index"], max(row["item_indices"])) for row in rows] == read
    assert len(read) == 4


def test_reranked_lists_equal_reranking_by_hand(world):
    prepared, vocabulary, model, variables, _ = world
    task = task_info("eval_shop_retrieval")

    def predictions(reranking=None, ks=(1, 5)):
        evaluator = evaluation.Evaluator(
            "eval_shop_retrieval", LENGTHS, 3, split="test", ks=ks, reranking=reranking
        )
        return evaluator, evaluator.predict(task, model, variables)

    _, towers = predictions()
    evaluator, found = predictions(Reranking(depth=4))
    rows = {row["user_index"]: row for row in read_rows(prepared, "next_items", "test")}
    pasts = dict(zip(rows, past_items(prepared, "test"), strict=True))
    retriever = Retriever(model, variables, vocabulary, OPTIONS)
    catalogue = prepared.catalogue()
    of_items = retriever.embed_items(catalogue.texts)
    known = prepared.co_occurrence(), prepared.ease(), catalogue.texts, catalogue.train_counts
    reranker = Reranker(*known, depth=4)
    for i, user in enumerate(found.users.tolist()):
        row, past = rows[user], pasts[user]
        assert row["item_indices"][0] == found.targets[i, 0]
        (vector,) = retriever.embed_users([row["history"]])
        best = reranker.rerank(
            [past.tolist()],
            [np.setdiff1d(past, found.targets[i])],
            TopK(towers.top_items[i : i + 1], towers.scores[i : i + 1]),
            lambda ids, vector=vector: of_items[ids] @ vector,
        )
        left = [item for item in best.ids[0].tolist() if item >= 0]
        own = [item for item in found.top_items[i].tolist() if item >= 0]
        assert own == left[: len(own)]
        assert found.ranks[i, 0] == left.index(found.targets[i, 0]) + 1
    metrics = evaluator.metrics(task, found)
    assert metrics["hit_rate@1"] == (found.ranks == 1).mean()
    # More are reranked than the lists are long.
    _, short = predictions(Reranking(depth=5), ks=(1,))
    np.testing.assert_array_equal(short.top_items, found.top_items[:, :1])
    np.testing.assert_array_equal(short.ranks, found.ranks)


def test_an_item_that_is_no_candidate_follows_in_the_towers_order():
    """Of 40 items 3 are found by towers, and some by the others; all ranks against a whole sort."""
    rng = np.random.default_rng(5)
    vectors, users = rng.normal(size=(40, 6)), rng.normal(size=(30, 6))
    scores = (users @ vectors.T).astype(np.float32)
    order = np.argsort(-scores, axis=1)
    targets = rng.integers(0, 40, (30, 2))
    targets[::3, 1] = -1
    ranks = np.where(targets < 0, 0, (order[:, :, None] == targets[:, None]).argmax(axis=1) + 1)
    events = rng.integers(0, 40, 300)
    counts = np.bincount(events, minlength=40)
    acted = np.arange(300) % 25, events, 40
    known = CoOccurrence.counted(*acted), Ease.fitted(*acted)
    texts = [f"word{n % 13}" for n in range(40)]

    def similarities(rows, ids):
        return np.where(ids < 0, -np.inf, np.take_along_axis(scores[rows], ids, axis=1))

    top = order[:, :3]
    towers = RetrievalPredictions(
        np.arange(30), targets, ranks, top, np.take_along_axis(scores, top, 1), np.full(30, 40)
    )
    past = [rng.integers(0, 40, 1 + n % 4) for n in range(30)]
    nothing = [np.zeros(0, np.int64)] * 30
    retrieval = Retrieval(towers, nothing, lambda: past, similarities)
    reranker = Reranker(*known, texts, counts, depth=2)
    found = reranked(reranker, retrieval, None)
    num_found = 0
    for i in range(30):
        arguments = ([past[i]], [[]], TopK(top[i : i + 1], towers.scores[i : i + 1]))
        best = reranker.rerank(*arguments, lambda ids, i=i: scores[i][ids]).ids[0]
        best = best[best >= 0].tolist()
        whole = best + [item for item in order[i].tolist() if item not in best]
        num_found += bool(set(best) & set(targets[i].tolist()))
        expected = [whole.index(item) + 1 if item >= 0 else 0 for item in targets[i]]
        assert found.ranks[i].tolist() == expected
        assert found.top_items[i].tolist() == best[:3]
    assert 0 < num_found < 30

    # What is learnt is what a search on the candidates finds, and it orders better.
    weights, num_rows = learnt_weights(reranker, retrieval)
    assert num_rows == num_found
    learnt = reranked(reranker, retrieval, weights)
    mrr = [ranking.reciprocal_ranks(of.ranks).mean() for of in (learnt, found)]
    assert mrr[0] > mrr[1]


def test_runs_are_compared_by_jobs_that_score_examples(world):
    model_dir = str(world[4])
    asked = {"task_feature_lengths": LENGTHS, "against": model_dir}
    metrics = of_checkpoint.evaluate(model_dir, "eval_shop_retrieval", **asked)
    assert metrics["against/mrr"] == metrics["mrr"]
    assert metrics["gain"] == metrics["gain_error"] == 0
    with pytest.raises(ConfigError, match="'language' have no score of single examples"):
        of_checkpoint.evaluate(model_dir, "eval_shop_pretrain", **asked)


def test_evaluator_is_what_the_train_loop_calls(world):
    _, _, model, variables, model_dir = world
    during = evaluation.Evaluator("eval_shop_ctr", LENGTHS, 2, split="test")
    first = during(model, variables, 10)
    assert during(model, variables, 20) == first
    metrics = of_checkpoint.evaluate(str(model_dir), "eval_shop_ctr", LENGTHS)
    of_baselines = {name for name in metrics if "/" in name}
    assert {name.split("/")[0] for name in of_baselines} == set(MEAN_BASELINES)
    assert first == pytest.approx({n: v for n, v in metrics.items() if n not in of_baselines})


def test_texts_are_cut_in_use_as_in_training(world, tmp_path):
    """By the length that gin gave the rows of the task when the folder was written."""
    prepared, vocabulary, model, variables, model_dir = world
    longest = max(len(vocabulary.encode(text)) for text in prepared.catalogue().texts)
    short = longest + 1  # with [BOS] and [EOS] one token is lost
    try:
        gin.bind_parameter("scoring_rows.candidate_length", short)
        gin.bind_parameter("retrieval_rows.candidate_length", short - 1)
        folders = [shutil.copytree(model_dir, tmp_path / kind) for kind in ("ctr", "retrieval")]
        for folder in folders:
            shutil.rmtree(folder / "inference", ignore_errors=True)
            save_task_assets(folder, f"eval_shop_{folder.name}", LENGTHS)
        task = task_info("eval_shop_ctr")
        found = evaluation.Evaluator(task.name, LENGTHS, 4, split="train").predict(
            task, model, variables
        )
    finally:
        gin.clear_config()
    scoring, retrieval = (load_model(folder) for folder in folders)
    assert scoring.template() == prepared.template()
    rows = list(read_rows(prepared, "groups", "train"))
    requests = ([r["history"] for r in rows], [r["candidates"] for r in rows])
    probabilities = np.concatenate(scoring.scorer().score_requests(*requests))
    np.testing.assert_allclose(probabilities, found.probabilities, atol=1e-6)
    uncut = Scorer(model, variables, vocabulary, OPTIONS).score_requests(*requests)
    assert np.abs(np.concatenate(uncut) - probabilities).max() > 1e-5

    texts = prepared.catalogue().texts
    options = dataclasses.replace(OPTIONS, candidate_length=short - 1)
    cut = Retriever(model, variables, vocabulary, options)
    np.testing.assert_allclose(
        retrieval.retriever().embed_items(texts), cut.embed_items(texts), atol=1e-6
    )
    assert retrieval.settings.tasks["eval_shop_retrieval"].candidate_length == short - 1


def test_infer_writes_ids_and_scores(world, tmp_path):
    prepared, _, _, _, model_dir = world
    (path,) = of_checkpoint.infer(str(model_dir), "eval_shop_ctr", LENGTHS)
    rows = pq.read_table(path).to_pylist()
    expected = {
        (r["user_id"], prepared.catalogue().items[i].id): int(label)
        for r in read_rows(prepared, "groups", "test")
        for i, label in zip(r["item_indices"], r["labels"], strict=True)
    }
    assert {(r["user_id"], r["item_id"]): r["label"] for r in rows} == expected
    (path,) = of_checkpoint.infer(
        str(model_dir), "eval_shop_retrieval", LENGTHS, k=2, output=str(tmp_path / "r.jsonl")
    )
    row = json.loads(path.read_text().splitlines()[0], parse_constant=pytest.fail)
    assert row["scores"][1] is None  # of no film
    assert len(row["top_item_ids"]) == len(row["scores"]) == 2
    assert row["top_item_ids"][0] in row["target_item_ids"]  # only one film is left
    assert row["top_item_ids"][1] == ""
    paths = of_checkpoint.infer(
        str(model_dir), "eval_shop_pretrain", LENGTHS, output=str(tmp_path / "lm.parquet")
    )
    assert {p.name for p in paths} == {
        "lm-eval_shop_infilling.parquet",
        "lm-eval_shop_generation.parquet",
    }


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("preds.csv", r"preds\.csv: predictions are written as \.parquet or \.jsonl"),
        (
            "file/preds.jsonl",
            r"file/preds\.jsonl: its folder cannot be made .*; name another",
        ),
        ("", "is a folder; name a file"),
        ("file/metrics.json", "its folder cannot be made"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    world, tmp_path, monkeypatch, output, message
):
    monkeypatch.setattr(of_checkpoint, "Evaluator", None)  # nothing is loaded
    (tmp_path / "file").touch()
    run = of_checkpoint.infer if "preds" in output else of_checkpoint.evaluate
    with pytest.raises(ConfigError, match=message):
        run(str(world[4]), "eval_shop_ctr", LENGTHS, output=str(tmp_path / output))


def test_a_task_that_the_run_was_not_trained_for_is_refused_before_it_is_loaded(
    world, tmp_path, monkeypatch
):
    small_model(world[1], tmp_path / "scorer", 1, num_prompts=3, num_options=2, head="option")
    small_model(world[1], tmp_path / "retriever", 1, retrieval_dim=8)
    monkeypatch.setattr(of_checkpoint, "restore_model", None)
    for run, task, lacks in (
        ("scorer", "eval_shop_retrieval", "task of retrieval, and .*scorer has no retrieval proj"),
        ("retriever", "eval_shop_ctr", "task of scoring, and .*retriever has no classes"),
    ):
        with pytest.raises(ConfigError, match=f"'{task}' is a {lacks}"):
            of_checkpoint.evaluate(str(tmp_path / run), task, LENGTHS)
