"""Evaluation from a checkpoint over the prepared tiny shop."""

import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import gin
import numpy as np
import pyarrow.parquet as pq
import pytest
from jax.sharding import AbstractMesh

from m6rec_jax.configuration import bound, parse_config
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.store.prepared import Catalogue
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.catalogue_index import TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.evaluation import checkpoint_evaluation as of_checkpoint
from m6rec_jax.evaluation import evaluator as evaluation
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.evaluation.reranking import LearntRanking, Reranking, Retrieval
from m6rec_jax.jobs.retrieval import ReadRows, RetrievalPredictions, rows_of_predictions
from m6rec_jax.metrics import classification, ranking
from m6rec_jax.metrics.baselines import MEAN_BASELINES
from m6rec_jax.model import M6Rec
from m6rec_jax.pipeline.prepared_rows import interactions, past_items, read_rows
from m6rec_jax.pipeline.registration import register_recommendation_tasks, task_info, unregister
from m6rec_jax.sharding import MESH_AXES, fully_sharded
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


def test_a_sample_gives_what_the_whole_part_gives_for_its_rows(world):
    _, _, model, variables, _ = world
    asked = ("eval_shop_retrieval", LENGTHS, 3)
    evaluator = evaluation.Evaluator(*asked, reranking=Reranking())
    (task,) = evaluator.tasks
    whole = evaluator.predict(task, model, variables)
    sampling = evaluation.Evaluator(*asked, reranking=Reranking())
    sampling.sample = 2
    found = sampling.predict(task, model, variables)
    assert len(whole.users) > 2
    np.testing.assert_array_equal(found.users, whole.users[:2])
    np.testing.assert_array_equal(found.ranks, whole.ranks[:2])
    np.testing.assert_array_equal(found.scores, whole.scores[:2])


@pytest.mark.parametrize("sample", [0, 9])
def test_a_limit_is_of_each_process(world, monkeypatch, sample):
    read = []
    for process in range(2):
        monkeypatch.setattr(evaluation, "batch_reader", lambda mesh, own=process: (own, 2))
        evaluator = evaluation.Evaluator(
            "eval_shop_ctr", LENGTHS, 4, split="train", limit=2, sample=sample
        )
        (task,) = evaluator.tasks
        for batch in evaluator.batches(task):
            real = batch["example_weights"] > 0
            items = batch["decoder_item_ids"][real].max(axis=1)
            read += zip(batch["user_ids"][real, 0].tolist(), items.tolist(), strict=True)
    rows = evaluator.evaluation(task).rows(("user_index", "item_indices"))
    assert [(row["user_index"], max(row["item_indices"])) for row in rows] == read
    assert len(read) == 4


@pytest.mark.parametrize(("setting", "ending"), [("limit", "first3"), ("sample", "sample3")])
def test_lengths_of_lists_and_numbers_of_rows_come_from_gin(world, setting, ending):
    *_, model_dir = world
    with gin.unlock_config():
        gin.bind_parameter("Evaluator.ks", (2,))
        gin.bind_parameter(f"Evaluator.{setting}", 3)
    try:
        metrics = of_checkpoint.evaluate(str(model_dir), "eval_shop_retrieval", LENGTHS)
    finally:
        gin.clear_config()
    assert [name for name in metrics if name.startswith("hit_rate@")] == ["hit_rate@2"]
    assert metrics["num_examples"] == 3
    assert (model_dir / "evaluation" / f"eval_shop_retrieval-test-3-{ending}.json").is_file()


@pytest.mark.parametrize("ks", [(), (0, 5), 0])
def test_cut_offs_begin_at_one(world, ks):
    with pytest.raises(ConfigError, match="must be cut-offs of 1 or more"):
        evaluation.Evaluator("eval_shop_retrieval", LENGTHS, ks=ks)


def test_rows_of_a_bank_are_never_guessed(world):
    """A bank's tasks are evaluated with their own prompts, which gin must name here, too."""
    model = world[2]
    prompts = dataclasses.replace(model.config.prompts, num_tasks=2)
    bank = M6Rec(model.config.replace(prompts=prompts))
    evaluator = evaluation.Evaluator("eval_shop_ctr", LENGTHS, 3, split="test")
    with pytest.raises(ConfigError, match=r"'eval_shop_ctr'.*num_tasks = 2"):
        evaluator(bank, {})


def test_reranked_lists_equal_reranking_by_hand(world):
    prepared, vocabulary, model, variables, model_dir = world
    task = task_info("eval_shop_retrieval")
    save_task_assets(model_dir, "eval_shop_ctr", LENGTHS)

    def predictions(reranking=None, ks=(1, 5)):
        evaluator = evaluation.Evaluator(
            "eval_shop_retrieval", LENGTHS, 3, split="test", ks=ks, reranking=reranking
        )
        return evaluator, evaluator.predict(task, model, variables)

    _, towers = predictions()
    evaluator, found = predictions(Reranking(str(model_dir), depth=4))
    # The rows of 'reranking' say, too, what stood before each of them.
    options = PrepareOptions(views=("reranking",), next_items_size=1)
    folder = prepared.data_dir
    again = prepare(folder / "tiny-shop", folder, "leave_one_out", options=options, progress=False)
    rows = {row["user_index"]: row for row in read_rows(again, "reranking", "test")}
    for row, past in zip(
        read_rows(prepared, "next_items", "test"), past_items(prepared, "test"), strict=True
    ):
        assert rows[row["user_index"]]["recent_indices"].tolist() == past.tolist()

    scorer = Scorer(model, variables, vocabulary, OPTIONS)
    retriever = Retriever(model, variables, vocabulary, OPTIONS)
    catalogue = prepared.catalogue()
    of_items = retriever.embed_items(catalogue.texts)
    known = prepared.co_occurrence(), prepared.ease(), catalogue.texts, catalogue.train_counts
    reranker = Reranker(*known, scorer, depth=4)
    for i, user in enumerate(found.users.tolist()):
        row = rows[user]
        assert row["item_indices"][0] == found.targets[i, 0]
        (vector,) = retriever.embed_users([row["history"]])
        best = reranker.rerank(
            [row["history"]],
            [row["recent_indices"].tolist()],
            [np.setdiff1d(row["recent_indices"], found.targets[i])],
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
    _, short = predictions(Reranking(str(model_dir), depth=5), ks=(1,))
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
    data = FakeData(*known, Catalogue([], texts, counts > 99, counts))

    def similarities(rows, ids):
        return np.where(ids < 0, -np.inf, np.take_along_axis(scores[rows], ids, axis=1))

    top = order[:, :3]
    towers = RetrievalPredictions(
        np.arange(30), targets, ranks, top, np.take_along_axis(scores, top, 1), np.full(30, 40)
    )
    reranking = Reranking(depth=2)
    past = [rng.integers(0, 40, 1 + n % 4) for n in range(30)]
    read = ReadRows([[]] * 30, past, [np.zeros(0, np.int64)] * 30)
    retrieval = Retrieval(data, towers, read, similarities, Runtime())
    found = reranking(retrieval, None)
    reranker = Reranker(*known, texts, counts, depth=2)
    num_found = 0
    for i in range(30):
        arguments = ([[]], [past[i]], [[]], TopK(top[i : i + 1], towers.scores[i : i + 1]))
        best = reranker.rerank(*arguments, lambda ids, i=i: scores[i][ids]).ids[0]
        best = best[best >= 0].tolist()
        whole = best + [item for item in order[i].tolist() if item not in best]
        num_found += bool(set(best) & set(targets[i].tolist()))
        expected = [whole.index(item) + 1 if item >= 0 else 0 for item in targets[i]]
        assert found.ranks[i].tolist() == expected
        assert found.top_items[i].tolist() == best[:3]
    assert 0 < num_found < 30

    # What is learnt is what a search on the candidates finds, and it orders better.
    learning = LearntRanking(reranking)
    learnt = learning(retrieval, None)
    own = learning.learnt["", True]
    assert own.num_rows == num_found
    np.testing.assert_array_equal(learnt.ranks, reranking(retrieval, own.weights).ranks)
    mrr = [ranking.reciprocal_ranks(of.ranks).mean() for of in (learnt, found)]
    assert mrr[0] > mrr[1]


def test_rows_that_want_the_same_have_their_own_past():
    """A user who wants the same item in every row: their order tells them apart."""
    past = [np.arange(number) for number in range(3)]
    rows = [{"user_index": 7, "item_indices": np.array([3])}] * 3
    evaluated = SimpleNamespace(
        rows=lambda columns: rows,
        once=lambda _, make: make(),
        past_items=lambda: past,
    )
    nothing = np.zeros((3, 0))
    towers = RetrievalPredictions(
        np.full(3, 7), np.full((3, 1), 3), np.ones((3, 1)), nothing, nothing, np.full(3, 40)
    )
    read = rows_of_predictions(evaluated, towers, past, with_text=False)
    assert [own.tolist() for own in read.past] == [[], [0], [0, 1]]


@dataclasses.dataclass
class FakeData:
    """What reranking asks of a task's data."""

    counts: CoOccurrence
    weights: Ease
    items: Catalogue
    name: str = "fake"

    def prepared(self):
        return self

    def co_occurrence(self):
        return self.counts

    def ease(self):
        return self.weights

    def catalogue(self):
        return self.items


def test_the_past_of_the_test_part_is_all_but_the_last(world):
    assert [len(items) for items in past_items(world[0], "test")] == [5] * 4
    assert len(interactions(world[0], "train").users) == 16


def test_shortened_rows_are_counted_in_all_processes(world, monkeypatch):
    def sums(shortened, rows, cut, texts):
        assert (shortened, rows, cut, texts) == (0, 4, 0, 4)
        return [3, 12, 1, 20]  # of two processes more

    monkeypatch.setattr(evaluation, "sum_over_processes", sums)
    metrics = of_checkpoint.evaluate(str(world[4]), "eval_shop_ctr", LENGTHS)
    assert metrics["share_with_dropped_behaviours"] == 0.25
    assert metrics["share_of_cut_texts"] == 0.05


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


def test_batches_divide_over_devices_and_processes(world, monkeypatch, caplog):
    """Known when a run starts, not at its first validation."""
    monkeypatch.setattr(evaluation, "batch_reader", lambda mesh: (1, 4))
    mesh = AbstractMesh((2, 8, 1), MESH_AXES)
    with caplog.at_level("INFO"):
        evaluator = evaluation.Evaluator("eval_shop_ctr", LENGTHS, 5, split="test", mesh=mesh)
    assert "16 rows a step instead of 5: a multiple of 16" in caplog.text
    batch = next(iter(evaluator.batches(evaluator.tasks[0])))
    assert batch["example_weights"].shape == (4,)


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
            r"file/preds\.jsonl cannot be written: its folder cannot be made .*; name another",
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


@pytest.mark.parametrize("given", [True, False])
def test_predictions_land_in_the_bucket(world, bucket, tmp_path, monkeypatch, given):
    """Given as output, and below a MODEL_DIR."""
    model_dir = str(world[4])
    monkeypatch.chdir(tmp_path)
    if given:
        output = "gs://bucket/found/r.jsonl"
        (path,) = of_checkpoint.infer(model_dir, "eval_shop_ctr", LENGTHS, output=output)
        assert str(path) == output
        assert "user_id" in json.loads((bucket / "found/r.jsonl").read_text().splitlines()[0])
    else:
        restore = functools.partial(of_checkpoint.restore_model, model_dir)
        monkeypatch.setattr(of_checkpoint, "restore_model", lambda _, **rest: restore(**rest))
        of_checkpoint.infer("gs://bucket/run", "eval_shop_ctr", LENGTHS)
        (file,) = (bucket / "run/predictions").iterdir()
        assert file.name == "eval_shop_ctr-test-3.parquet"
        assert "probability" in pq.read_table(file).column_names
    assert not list(tmp_path.glob("gs:*"))


@pytest.fixture
def parse():
    yield parse_config
    gin.clear_config()


def test_the_sharding_file_reaches_evaluation(world, parse, monkeypatch):
    """What is restored lies as the rules say, here over the only device."""
    files = ["gin_configs/commands/eval.gin", "gin_configs/sharding/fully_sharded.gin"]
    parse(
        files,
        [
            f"MODEL_DIR={world[4]}",
            "MIXTURE_OR_TASK_NAME=eval_shop_ctr",
            f"TASK_FEATURE_LENGTHS={LENGTHS}",
        ],
    )
    restored = []
    monkeypatch.setattr(
        evaluation.Evaluator,
        "predict",
        lambda self, task, model, variables: restored.append(variables),
    )
    for name in ("metrics", "baselines"):
        monkeypatch.setattr(evaluation.Evaluator, name, lambda *_: {})
    of_checkpoint.evaluate()
    embedding = restored[0]["params"]["token_embedder"]["embedding"]
    assert "fsdp" in embedding.sharding.spec


@pytest.mark.parametrize(
    ("file", "name"), [("infer", "infer_requests"), ("index", "build_index"), ("chat", "chat")]
)
def test_the_sharding_file_reaches_inference(file, name, parse):
    files = [f"gin_configs/commands/{file}.gin", "gin_configs/sharding/fully_sharded.gin"]
    parse(files, ["MODEL_DIR=run"])
    assert bound(f"{name}.rules") == fully_sharded()
    parse(files[:1], ["MODEL_DIR=run"])
    assert bound(f"{name}.rules") is None


@pytest.mark.parametrize("job", ["scoring", "retrieval", "generation", "mixture"])
def test_the_sharding_file_reaches_validation(job, parse):
    parse(
        [
            "gin_configs/models/mini.gin",
            "gin_configs/tuning/option_adapter.gin",
            f"gin_configs/recipes/{job}.gin",
            "gin_configs/sharding/fully_sharded.gin",
        ],
        [
            "MODEL_DIR=run",
            "MIXTURE_OR_TASK_NAME=eval_shop_ctr",
            f"TASK_FEATURE_LENGTHS={LENGTHS}",
            "TRAIN_STEPS=500",
            *(["RETRIEVAL_DIM=8"] if job == "retrieval" else []),
            *(["NUM_OPTIONS=2"] if job in ("scoring", "mixture") else []),
        ],
    )
    assert bound("Evaluator.rules") == bound("Step.rules") == fully_sharded()


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


def test_another_vocabulary_is_refused_where_the_run_has_none_of_its_own(world, tmp_path):
    model_dir = shutil.copytree(world[4], tmp_path / "run")
    shutil.rmtree(model_dir / "inference", ignore_errors=True)
    other = shop.shop_vocabulary(tmp_path / "other.model", size=330)
    assert other != world[1]
    with gin.unlock_config():
        gin.bind_parameter("vocabulary_file.path", str(tmp_path / "other.model"))
    names = register_recommendation_tasks("other_shop", "tiny-shop", split="leave_one_out")
    try:
        with pytest.raises(CheckpointError, match="another vocabulary"):
            of_checkpoint.evaluate(str(model_dir), "other_shop_ctr", LENGTHS)
        unregister(names)
        names = register_recommendation_tasks("own_shop", "tiny-shop", split="leave_one_out")
        (model_dir / "inference").mkdir()
        shutil.copy(world[1].model_file, model_dir / "inference" / "vocabulary.model")
        found = of_checkpoint.evaluate(str(model_dir), "own_shop_ctr", LENGTHS)
    finally:
        unregister(names)
        gin.clear_config()
    assert found == of_checkpoint.evaluate(str(world[4]), "eval_shop_ctr", LENGTHS)
    assert task_info("eval_shop_ctr").kind == "scoring"
