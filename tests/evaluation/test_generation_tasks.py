"""Generated texts and items recommended in dialogues: metrics against other ways to them."""

import json
import shutil

import gin
import numpy as np
import pytest
import seqio

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.rendering.corpora import prepare_corpus
from m6rec_jax.data.rendering.dialogues import Dialogues
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.model_folder import load_model, read_ranking
from m6rec_jax.evaluation import evaluator as evaluation
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.evaluation.calibration import calibrate
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.metrics import faithfulness, generation, ranking
from m6rec_jax.metrics.text_metrics import (
    feature_metrics,
)
from m6rec_jax.pipeline.prepared_rows import TaskPart, read_rows
from m6rec_jax.pipeline.registration import (
    register_dialogue_tasks,
    register_generation_tasks,
    register_mixture,
    task_info,
    unregister,
)
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary
from tests.data.dialogue_files import FILMS, write_inspired_folder
from tests.evaluation.small_model import small_model
from tests.tasks import shop

LENGTHS = {"inputs": 64, "targets": 24}
LIMIT = 24
VIEWS = ("explanations", "titles")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(vocabulary, model, variables, MODEL_DIR), with tasks of a shop and of dialogues."""
    folder = tmp_path_factory.mktemp("data")
    options = PrepareOptions(views=VIEWS)
    prepare(
        shop.write_shop(folder / "shop", shop.WRITING),
        folder,
        "leave_one_out",
        options,
        progress=False,
    )
    talks = Dialogues(write_inspired_folder(folder / "talks"))
    prepare_corpus(talks, folder, progress=False)
    talk = [f"{a} {film}" for a in ("I liked", "Then try", "SYSTEM:", "USER:") for film in FILMS]
    path = folder / "everything" / "vocabulary.model"
    texts = [*shop.shop_texts(), *talk * 3, "because", "SYSTEM recommends"]
    train_vocabulary(texts, path, 420, **shop.WORDS)
    vocabulary = Vocabulary(path)
    model_dir = tmp_path_factory.mktemp("model")
    prompts = {"num_prompts": 4, "num_options": 0, "head": "none", "retrieval_dim": 8}
    model, variables = small_model(vocabulary, model_dir, 3, **prompts)
    patch = pytest.MonkeyPatch()
    patch.setenv(DATA_DIR_VARIABLE, str(folder))
    with gin.unlock_config():
        gin.bind_parameter("vocabulary_file.shared", "everything")
    names = register_generation_tasks("shop", "tiny-shop", split="leave_one_out", views=VIEWS)
    names += register_dialogue_tasks("talks", "talks")
    names.append(register_mixture("all_written", names[:-1]))
    yield vocabulary, model, variables, model_dir
    unregister(names)
    patch.undo()
    gin.clear_config()


@pytest.fixture(scope="module")
def found(world):
    """Task name to (its predictions, its metrics), by one evaluator over the training parts."""
    evaluator = evaluation.Evaluator("all_written", LENGTHS, 8, split="train", limit=LIMIT)
    results = {}
    for task in evaluator.tasks:
        predictions = evaluator.predict(task, world[1], world[2])
        results[task.name] = (predictions, evaluator.metrics(task, predictions))
    return results


@pytest.fixture(scope="module")
def generator(world):
    vocabulary, model, variables, _ = world
    options = EngineOptions(64, 24, batch_sizes=(LIMIT,), source_buckets=(64,))
    return Generator(model, variables, vocabulary, options)


def rows_of(task, part="train"):
    known = task_info(task).prepared().num_rows(task_info(task).view)
    if part not in known:
        return []
    return list(read_rows(task_info(task).prepared(), task_info(task).view, part))


def columns_of(task, predictions):
    found = task_info(task)
    return found.job.columns(TaskPart(found, "train"), predictions)


def requests_of(rows):
    return [TextRequest(row["source"], row["prefix"]) for row in rows]


def test_explanations(found, generator):
    predictions, metrics = found["shop_explanations"]
    rows = rows_of("shop_explanations")
    references = [row["target"] for row in rows]
    columns = columns_of("shop_explanations", predictions)
    texts = columns["written"].tolist()
    # Freely, an untrained model would write something else.
    freely = [text.text for text in generator.write(requests_of(rows))]
    assert set(freely).isdisjoint(texts)
    assert columns["reference"].tolist() == references
    assert columns["source"][0].endswith(rows[0]["source"][-1])
    everywhere = [row for part in PARTS for row in rows_of("shop_explanations", part)]
    expected = {
        "bleu_1": generation.bleu(texts, references, 1),
        "rouge_2": generation.rouge(texts, references)[2],
        "usr": generation.unique_sentence_ratio(texts),
        **feature_metrics(
            texts,
            [row["features"] for row in rows],
            lambda: [feature for row in everywhere for feature in row["features"]],
        ),
        "num_examples": len(rows),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["perplexity"] > 1
    items = task_info("shop_explanations").prepared().catalogue().items
    facts = [{"genres": items[row["item_indices"][0]].attributes["genres"]} for row in rows]
    genres = {"genres": ["comedy", "drama", "horror"]}
    titles = [item.attributes["title"] for item in items]
    dictionary = faithfulness.AttributeDictionary(genres, neutral=titles)
    shares = faithfulness.faithfulness(texts, facts, dictionary)
    assert shares["true_share"] == metrics["true_share"] == metrics["true_citations"] == 1.0
    assert metrics["silent_share"] == 0.0
    json.dumps(metrics)


def recall(lists, targets, k):
    hits = [target in found[:k] for found, target in zip(lists, targets, strict=True)]
    return sum(hits) / len(hits)


def expected_recall(rows, lists, new_lists, k=1):
    targets = [int(row["item_indices"][0]) for row in rows]
    new = [i for i, row in enumerate(rows) if targets[i] not in row["seen_indices"]]
    assert 0 < len(new) < len(rows)
    return {
        f"recall@{k}": recall(lists, targets, k),
        f"new/recall@{k}": recall([new_lists[i] for i in new], [targets[i] for i in new], k),
    }


def test_written_titles_are_recommendations(world, found, generator):
    predictions, metrics = found["talks_titles"]
    rows = rows_of("talks_titles")[:LIMIT]
    titles = task_info("talks_titles").prepared().catalogue().texts
    trie = TitleTrie(world[0], titles)
    lists = [
        [[title.indices[0] for title in one] for one in generator.recommend(requests, trie, 4)]
        for requests in (
            [TextRequest(row["source"]) for row in rows],
            [TextRequest(row["source"], seen=row["seen_indices"]) for row in rows],
        )
    ]
    expected = expected_recall(rows, *lists)
    assert {name: metrics[name] for name in expected} == expected
    # The catalogue has four titles, so cut-offs above are left out.
    assert not any(name.endswith("@5") for name in metrics)
    columns = columns_of("talks_titles", predictions)
    assert set(columns["title"]) <= set(titles)
    for row, one in zip(columns["top_titles"], lists[1], strict=True):
        assert [title for title in row if title] == [titles[i] for i in one]


def test_retrieved_items_are_recommendations(world, found):
    vocabulary, model, variables, _ = world
    predictions, metrics = found["talks_retrieval"]
    rows = rows_of("talks_retrieval")[:LIMIT]
    assert [row["text_id"] for row in predictions.rows] == [row["text_id"] for row in rows]
    catalogue = task_info("talks_retrieval").prepared().catalogue()
    retriever = Retriever(model, variables, vocabulary, EngineOptions(64, 24, batch_sizes=(LIMIT,)))
    users = retriever.embed_users([row["source"] for row in rows])
    scores = users @ retriever.embed_items(catalogue.texts).T
    named = np.zeros(scores.shape, bool)
    for place, row in enumerate(rows):
        named[place, row["seen_indices"]] = True
    lists = np.argsort(-scores, axis=1, kind="stable").tolist()
    without = np.argsort(-np.where(named, -9.0, scores), axis=1, kind="stable").tolist()
    expected = expected_recall(rows, lists, without)
    recommended = read_rows(
        task_info("talks_retrieval").prepared(), "recommendations", "train", ("item_indices",)
    )
    counts = np.bincount(
        [int(row["item_indices"][0]) for row in recommended], minlength=len(catalogue.items)
    )
    # Not how often they are named, by users, too.
    assert counts.sum() < catalogue.train_counts.sum()
    popular = np.argsort(-counts, kind="stable").tolist()
    new = [[i for i in popular if i not in row["seen_indices"]] for row in rows]
    expected |= {
        f"popularity/{name}": value
        for name, value in expected_recall(rows, [popular] * len(rows), new).items()
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["new/num_examples"] < metrics["num_examples"] == len(rows)


def test_weights_of_dialogues_are_learnt_and_found_beside_the_model(world, tmp_path):
    folder = shutil.copytree(world[3], tmp_path / "run")
    save_task_assets(folder, "talks_retrieval", LENGTHS)
    asked = (str(folder), "talks_retrieval", LENGTHS)
    found = calibrate(*asked, split="train", batch_size=8, limit=LIMIT)
    new, every = found["talks_retrieval"], found["talks_retrieval/all"]
    assert every.num_rows == every.facts["num_found"] == LIMIT
    assert every.quality > every.before
    # Where nothing comes again, that something was named says nothing.
    assert every.settings.known["had"] != 0 == new.settings.known["had"]
    rows = rows_of("talks_retrieval")[:LIMIT]
    repeated = [row["item_indices"][0] in row["seen_indices"] for row in rows]
    assert new.num_rows == LIMIT - sum(repeated) < LIMIT
    # In use nothing does; evaluation takes both.
    loaded = load_model(folder)
    assert loaded.settings.tasks["talks_retrieval"].ranking == new.settings
    evaluator = evaluation.Evaluator("talks_retrieval", LENGTHS, 8, split="train", limit=LIMIT)
    evaluator.ranking = read_ranking(folder, loaded.step)
    predictions = evaluator.predict(task_info("talks_retrieval"), *world[1:3])
    assert ranking.ndcg(predictions.ranks, 10) == pytest.approx(every.quality)
    new_ranks = predictions.new_ranks[~np.array(repeated)]
    assert ranking.ndcg(new_ranks, 10) == pytest.approx(new.quality)


def test_the_model_folder_says_what_is_written_and_with_which_data(world):
    """Of every task its own: those of the first task in the alphabet were once everybody's."""
    model_dir = world[3]
    save_task_assets(model_dir, "all_written", LENGTHS)
    loaded = load_model(model_dir)
    settings = loaded.settings.tasks
    assert settings["shop_explanations"].writing == "explanations"
    assert settings["shop_explanations"].kind == "generation"
    assert {name: own.prepared for name, own in settings.items()} == {
        "shop_explanations": "tiny-shop.leave_one_out",
        "shop_titles": "tiny-shop.leave_one_out",
        "talks_replies": "talks.by_group",
        "talks_retrieval": "talks.by_group",
        "talks_titles": "talks.by_group",
    }
    # Turns of a dialogue are cut as they were when the rows were made.
    turns = task_info("talks_replies").prepared().manifest.options["max_turns"]
    assert {settings[f"talks_{of}"].max_events for of in ("replies", "titles")} == {turns}
    prepared = task_info("shop_titles").prepared()
    assert loaded.dataset_spec("shop_titles") == prepared.dataset_spec
    assert loaded.dataset_spec("talks_titles") is None
    data = open_serving_data(loaded, "shop_titles")
    assert list(data.items) == [item.id for item in prepared.catalogue().items]


def test_texts_to_write_may_weigh_more(world):
    def weights():
        rows = seqio.get_mixture_or_task("shop_titles").get_dataset(LENGTHS, "train", shuffle=False)
        return [row["decoder_loss_weights"] for row in rows.take(5).as_numpy_iterator()]

    plain = weights()
    with gin.unlock_config():
        gin.bind_parameter("text_generation_rows.loss_weight", 3.0)
    try:
        for once, thrice in zip(plain, weights(), strict=True):
            assert once.max() == 1
            np.testing.assert_array_equal(thrice, 3 * once)
    finally:
        with gin.unlock_config():
            gin.bind_parameter("text_generation_rows.loss_weight", 1.0)
