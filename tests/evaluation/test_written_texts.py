"""Texts that are written and items recommended in dialogues: figures against other ways to them."""

import dataclasses
import json

import gin
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import seqio
from flax import linen as nn

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation import evaluator as evaluation
from m6rec_jax.evaluation.assets import save_task_assets
from m6rec_jax.inference.bundle import load_model
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.title_trie import TitleTrie
from m6rec_jax.metrics import diversity, explanation, faithfulness, generation
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.batches import EvaluationBatches
from m6rec_jax.pipeline.dialogue_registration import register_dialogue_tasks
from m6rec_jax.pipeline.prepared_rows import PARTS, read_rows
from m6rec_jax.pipeline.registration import task_info, unregister
from m6rec_jax.pipeline.writing_registration import register_writing_tasks
from m6rec_jax.tables.dialogue_preparation import prepare_dialogues
from m6rec_jax.tables.preparation import PrepareOptions, prepare
from m6rec_jax.tables.sources import DATA_DIR_VARIABLE
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary
from tests.tables.dialogue_files import FILMS, write_inspired_folder
from tests.tables.test_writing_views import VIEWS, write_shop
from tests.tasks import shop

LENGTHS = {"inputs": 64, "targets": 16}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(vocabulary, model, variables, MODEL_DIR), with tasks of a shop and of dialogues."""
    folder = tmp_path_factory.mktemp("data")
    options = PrepareOptions(views=(*VIEWS, "catalogue"))
    prepare(write_shop(folder / "shop"), folder, "leave_one_out", options, progress=False)
    prepare_dialogues(write_inspired_folder(folder / "talks"), folder, progress=False)
    talk = [f"{a} {film}" for a in ("I liked", "Then try", "SYSTEM:", "USER:") for film in FILMS]
    path = folder / "everything" / "vocabulary.model"
    train_vocabulary([*shop.shop_texts(), *talk * 3, "because", "SYSTEM recommends"], path, 420)
    vocabulary = Vocabulary(path)
    prompts = PromptConfig(num_prompts=4, num_options=0, head="none", retrieval_dim=8)
    config = ModelConfig(
        vocab_size=vocabulary.size,
        embed_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        prompts=prompts,
    )
    model = M6Rec(config)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(3), initial_features()))
    model_dir = tmp_path_factory.mktemp("model")
    run = RunDescription(config, vocabulary.fingerprint, "all", 1)
    with CheckpointStore(model_dir / "checkpoints") as store:
        store.save(3, dict(variables), data={}, run=run)
    patch = pytest.MonkeyPatch()
    patch.setenv(DATA_DIR_VARIABLE, str(folder))
    with gin.unlock_config():
        gin.bind_parameter("vocabulary_file.shared", "everything")
    names = register_writing_tasks("shop", "tiny-shop", split="leave_one_out", views=VIEWS)
    names += register_dialogue_tasks("talks", "talks")
    yield vocabulary, model, variables, model_dir
    unregister(names)
    patch.undo()
    gin.clear_config()


@pytest.fixture
def bound():
    """Binds gin parameters for one test: `bound(name, value)`."""

    def bind(name, value):
        with gin.unlock_config():
            gin.bind_parameter(name, value)

    yield bind
    gin.clear_config()
    bind("vocabulary_file.shared", "everything")


def rows_of(task, part):
    return list(read_rows(task_info(task).prepared(), task_info(task).view, part))


def generator_of(world):
    vocabulary, model, variables, _ = world
    return Generator(model, variables, vocabulary, source_length=64, target_length=16)


def evaluated(world, task, **arguments):
    return evaluation.evaluate(str(world[3]), task, LENGTHS, batch_size=4, **arguments)


def written(world, task, tmp_path, **arguments):
    path = tmp_path / "p.parquet"
    evaluation.infer(str(world[3]), task, LENGTHS, output=str(path), **arguments)
    return pq.read_table(path).to_pylist()


def test_kinds(world):
    assert task_info("shop_explanations").kind == "generation"
    kinds = [task_info(f"talks_{name}").kind for name in ("replies", "titles", "retrieval")]
    assert kinds == ["generation", "title_recommendation", "item_recommendation"]
    tasks = seqio.MixtureRegistry.get("talks_conversation").tasks
    assert {task.name for task in tasks} == {"talks_replies", "talks_titles", "talks_retrieval"}


def test_rows_go_on_from_their_prefix(world):
    vocabulary = world[0]
    row = rows_of("shop_explanations", "train")[0]
    batch = next(iter(EvaluationBatches("shop_explanations", LENGTHS, 4, split="train")))
    (place,) = np.flatnonzero((batch["decoder_item_ids"] == row["text_index"]).any(axis=1))
    weights, targets = batch["decoder_loss_weights"][place], batch["decoder_target_tokens"][place]
    assert vocabulary.decode(targets[weights > 0]) == row["target"]
    assert vocabulary.decode(targets[: int(np.argmax(weights > 0))]) == row["prefix"] == "because"


def test_explanations(world, tmp_path):
    """Of the training part, where there are most."""
    figures = evaluated(world, "shop_explanations", split="train")
    rows = rows_of("shop_explanations", "train")
    texts = [
        text.written
        for text in generator_of(world).greedy(
            [row["source"] for row in rows], [row["prefix"] for row in rows]
        )
    ]
    references = [row["target"] for row in rows]
    told = written(world, "shop_explanations", tmp_path, split="train")
    assert [row["written"] for row in told] == texts
    assert [row["reference"] for row in told] == references
    assert told[0]["source"].endswith(rows[0]["source"][-1])
    every = [
        f for part in PARTS for r in all_rows("shop_explanations", part) for f in r["features"]
    ]
    expected = {
        "bleu_1": generation.bleu(texts, references, 1),
        "rouge_2": generation.rouge(texts, references, tokens="unicode")[2].f,
        "usr": explanation.unique_sentence_ratio(texts),
        "fmr": explanation.feature_matching_ratio(texts, [row["features"][0] for row in rows]),
        "fcr": explanation.feature_coverage_ratio(texts, every),
        "num_examples": len(rows),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["perplexity"] > 1
    items = task_info("shop_explanations").prepared().catalogue().items
    facts = [{"genres": items[row["item_indices"][0]].attributes["genres"]} for row in rows]
    genres = {"genres": ["comedy", "drama", "horror"]}
    titles = [item.attributes["title"] for item in items]
    dictionary = faithfulness.AttributeDictionary(genres, neutral=titles)
    counts = faithfulness.faithfulness(texts, facts, dictionary)
    assert figures["silent_share"] == counts.silent_share
    assert figures.get("true_share") == (counts.true_share if counts.num_named else None)
    json.dumps(figures)


def all_rows(task, part):
    known = task_info(task).prepared().num_rows(task_info(task).view)
    return rows_of(task, part) if part in known else []


def test_references_are_true_of_their_items(world):
    """What explanations are trained on holds for every item."""
    from m6rec_jax.evaluation.generation import item_facts

    rows = [row for part in PARTS for row in all_rows("shop_explanations", part)]
    found = item_facts(task_info("shop_explanations").prepared(), "explanations", rows)
    counts = faithfulness.faithfulness(
        [row["target"] for row in rows], found.of_items, found.dictionary
    )
    assert (counts.true_share, counts.silent_share) == (1, 0)


def test_titles_and_how_they_are_decoded(world, bound, tmp_path):
    bound("Decoding.method", "beam_search")
    bound("Decoding.num_beams", 3)
    figures = evaluated(world, "shop_titles", split="train", limit=5)
    rows = rows_of("shop_titles", "train")[:5]
    texts = [
        found[0].written
        for found in generator_of(world).beam_search(
            [row["source"] for row in rows],
            [row["prefix"] for row in rows],
            num_beams=3,
        )
    ]
    assert [
        row["written"] for row in written(world, "shop_titles", tmp_path, split="train", limit=5)
    ] == texts
    training = [row["target"] for row in rows_of("shop_titles", "train")]
    assert figures["novelty"] == diversity.novelty(texts, training)
    assert figures["distinct_1"] == diversity.corpus_distinct(texts, 1)
    assert figures["exact_match"] == 0
    bound("Decoding.method", "sampling")
    with pytest.raises(ConfigError, match="'sampling' is none of"):
        evaluated(world, "shop_titles", limit=2)


def test_sampled_texts_do_not_depend_on_the_batch(world, bound, tmp_path):
    bound("Decoding.method", "sample")
    few = written(world, "shop_titles", tmp_path, split="train", limit=3, batch_size=1)
    more = written(world, "shop_titles", tmp_path, split="train", limit=6, batch_size=4)
    assert [row["written"] for row in few] == [row["written"] for row in more[:3]]


def test_replies(world, tmp_path):
    figures = evaluated(world, "talks_replies")
    told = written(world, "talks_replies", tmp_path)
    texts, references = ([row[name] for row in told] for name in ("written", "reference"))
    assert references == [row["target"] for row in rows_of("talks_replies", "test")]
    assert figures["bleu_2"] == pytest.approx(generation.bleu(texts, references, 2))
    assert figures["kgsf_bleu_2"] == generation.bigram_precision_bleu(texts, references)
    assert figures["kgsf_distinct_3"] == diversity.distinct_per_text(texts, 3)
    assert figures["perplexity"] > 1


def recall(lists, targets, k):
    hits = [target in found[:k] for found, target in zip(lists, targets, strict=True)]
    return sum(hits) / len(hits)


def expected_recall(rows, lists, new_lists, k):
    targets = [int(row["item_indices"][0]) for row in rows]
    new = [i for i, row in enumerate(rows) if targets[i] not in row["seen_indices"]]
    assert 0 < len(new) < len(rows)
    return {
        f"recall@{k}": recall(lists, targets, k),
        f"new/recall@{k}": recall([new_lists[i] for i in new], [targets[i] for i in new], k),
    }


@pytest.mark.parametrize("k", [1, 5])
def test_written_titles_are_recommendations(world, k, tmp_path):
    vocabulary = world[0]
    figures = evaluated(world, "talks_titles", split="validation")
    rows = rows_of("talks_titles", "validation")
    titles = task_info("talks_titles").prepared().catalogue().texts
    trie = TitleTrie(vocabulary, titles)
    sources = [row["source"] for row in rows]
    found = [
        [
            [title.places[0] for title in one]
            for one in generator_of(world).recommend(sources, trie, 4, seen=seen)
        ]
        for seen in (None, [row["seen_indices"] for row in rows])
    ]
    # The catalogue has four titles, so cut-offs above are left out.
    expected = expected_recall(rows, *found, k)
    if k > len(titles):
        assert not any(name.endswith(f"@{k}") for name in figures)
    else:
        assert {name: figures[name] for name in expected} == expected
    told = written(world, "talks_titles", tmp_path, split="validation", k=4)
    assert all(row["title"] in titles for row in told)
    for row, one in zip(told, found[1], strict=True):
        assert [title for title in row["top_titles"] if title] == [titles[i] for i in one]


def test_retrieved_items_are_recommendations(world):
    vocabulary, model, variables, _ = world
    figures = evaluated(world, "talks_retrieval", split="validation")
    rows = rows_of("talks_retrieval", "validation")
    catalogue = task_info("talks_retrieval").prepared().catalogue()
    retriever = Retriever(model, variables, vocabulary, source_length=64, target_length=16)
    scores = (
        retriever.embed_users([row["source"] for row in rows])
        @ retriever.embed_items(catalogue.texts).T
    )
    named = np.zeros(scores.shape, bool)
    for place, row in enumerate(rows):
        named[place, row["seen_indices"]] = True
    lists = np.argsort(-scores, axis=1, kind="stable").tolist()
    without = np.argsort(-np.where(named, -9.0, scores), axis=1, kind="stable").tolist()
    expected = expected_recall(rows, lists, without, 1)
    popular = np.argsort(-catalogue.train_counts, kind="stable").tolist()
    new = [[i for i in popular if i not in row["seen_indices"]] for row in rows]
    expected |= {
        f"popularity/{name}": value
        for name, value in expected_recall(rows, [popular] * len(rows), new, 1).items()
    }
    assert {name: figures[name] for name in expected} == expected
    assert figures["new/num_examples"] < figures["num_examples"] == len(rows)


def test_the_model_folder_says_what_is_written(world):
    model_dir = world[3]
    save_task_assets(model_dir, "shop_explanations", LENGTHS)
    settings = load_model(model_dir).settings
    assert settings.tasks["shop_explanations"].writing == "explanations"
    assert settings.tasks["shop_explanations"].kind == "generation"


def test_missing_metrics_are_told_before_training(world, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name.split(".")[0])

    monkeypatch.setattr(generation.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="text-metrics"):
        evaluation.Evaluator("shop_titles", LENGTHS, 4)
    assert dataclasses.is_dataclass(locations.prepared("talks", "by_group"))
