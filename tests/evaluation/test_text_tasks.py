"""Tasks of texts and zero-shot tasks, from prepared folders to metrics and predictions."""

import gin
import numpy as np
import pyarrow.parquet as pq
import pytest
import seqio

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.data.rendering.corpora import prepare_corpus
from m6rec_jax.data.rendering.texts import CorpusSpec, Text, TextColumns, TextCorpus, write_corpus
from m6rec_jax.engine.candidates.scoring import LikelihoodScorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation import checkpoint_evaluation as of_checkpoint
from m6rec_jax.evaluation.calibration import calibrate, report
from m6rec_jax.metrics import classification
from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.batches import BatchIterator, EvaluationBatches
from m6rec_jax.pipeline.prepared_rows import interactions, read_rows
from m6rec_jax.pipeline.registration import (
    register_mixture,
    register_recommendation_tasks,
    register_text_tasks,
    unregister,
)
from m6rec_jax.text.labels import Contrast
from tests.evaluation.small_model import small_model
from tests.tasks import shop

LENGTHS = {"inputs": 48, "targets": 48}
CLASSES = ("drama", "comedy", "horror")
# The last is written in two pieces.
CLASS_WORDS = ("drama", "comedy", "horror, liked")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, vocabulary, model, variables, MODEL_DIR), with tasks of a shop and of a corpus."""
    folder = tmp_path_factory.mktemp("data")
    shop.prepare_shop(folder)
    spec = CorpusSpec(
        "notes",
        TextColumns("id", "film", "words", about="title", label="genre"),
        classes=CLASSES,
        question="liked Alpha",
    )
    texts = [
        Text(f"n{n}", f"film {n}", "Alpha", (f"Beta, {CLASSES[n % 3]}, {n} days ago",), n % 3)
        for n in range(60)
    ]
    (folder / "notes").mkdir()
    write_corpus(folder / "notes", spec, texts)
    prepare_corpus(TextCorpus(folder / "notes"), folder, progress=False)
    vocabulary = shop.shop_vocabulary(folder / "everything" / "vocabulary.model")
    model_dir = tmp_path_factory.mktemp("model")
    model, variables = small_model(
        vocabulary, model_dir, 1, num_prompts=4, num_options=3, head="option"
    )
    patch = pytest.MonkeyPatch()
    patch.setenv(DATA_DIR_VARIABLE, str(folder))
    with gin.unlock_config():
        gin.bind_parameter("vocabulary_file.shared", "everything")
    names = register_recommendation_tasks("zero_shop", "tiny-shop", split="leave_one_out")
    names += register_text_tasks("notes", "notes", label_task="genre", class_words=CLASS_WORDS)
    names.append(register_mixture("all_language", ["zero_shop_generation", "notes_infilling"]))
    yield folder, vocabulary, model, variables, model_dir
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


def pieces(ids):
    return locations.load_vocabulary("notes", "by_group").pieces(ids)


# ---- classification


def test_text_is_read_and_a_question_asked(world):
    batch = next(iter(EvaluationBatches("notes_genre", LENGTHS, 4, split="test")))
    length = (batch["encoder_block_ids"][0] > 0).sum()
    source = " ".join(pieces(batch["encoder_input_tokens"][0, :length]))
    assert source.startswith("[BOS'] ▁Beta ,")
    assert source.endswith("▁ago [EOS']")
    asked = batch["decoder_block_ids"][0] > 0
    assert " ".join(pieces(batch["decoder_input_tokens"][0, asked])) == "<pad> ▁liked ▁Alpha </s>"
    labels = batch["decoder_labels"][0, asked]
    index = batch["decoder_item_ids"][0, asked][-1]
    assert labels.tolist() == [-1, -1, -1, index % 3]
    assert (batch["decoder_loss_weights"] == 0).all()


def test_the_word_of_a_class_is_written_where_its_number_is_read(world, bound):
    """After the question's `[EOS]`, with the same source: scoring's rows but for their targets."""
    batches = (
        next(iter(EvaluationBatches(name, LENGTHS, 6, split="train")))
        for name in ("notes_genre", "notes_genre_in_words")
    )
    numbered, written = batches
    vocabulary = world[1]
    for row in range(6):
        for feature in ("encoder_input_tokens", "encoder_block_ids"):
            np.testing.assert_array_equal(numbered[feature][row], written[feature][row])
        (end,) = np.flatnonzero(numbered["decoder_labels"][row] >= 0)
        word = vocabulary.encode_array(CLASS_WORDS[numbered["decoder_labels"][row, end]])
        weights = written["decoder_loss_weights"][row]
        assert np.flatnonzero(weights).tolist() == list(range(end, end + len(word)))
        assert written["decoder_target_tokens"][row, weights > 0].tolist() == word.tolist()
        read = written["decoder_input_tokens"][row]
        before = numbered["decoder_input_tokens"][row]
        np.testing.assert_array_equal(read[: end + 1], before[: end + 1])
        np.testing.assert_array_equal(read[end + 1 : end + len(word)], word[:-1])
        assert (written["decoder_labels"][row] == -1).all()


def test_training_leaves_out_words_of_the_text_never_of_the_answer(world, bound):
    bound("class_word_rows.word_dropout", 0.5)

    def sizes(batches):
        batch = next(iter(batches))
        return (batch["encoder_block_ids"] > 0).sum(), (batch["decoder_loss_weights"] > 0).sum(1)

    name = "notes_genre_in_words"
    read, answers = sizes(BatchIterator(name, LENGTHS, 16, num_shards=1))
    all_of_it, _ = sizes(EvaluationBatches(name, LENGTHS, 16, split="train"))
    assert read < 0.8 * all_of_it
    assert (answers > 0).all()
    bound("class_word_rows.word_dropout", 1.0)
    with pytest.raises(ConfigError, match=r"word_dropout = 1\.0 is not from 0 up to below 1"):
        next(BatchIterator(name, LENGTHS, 2, num_shards=1))


def test_metrics_equal_those_of_the_predictions(world, tmp_path):
    model_dir = world[4]
    metrics = of_checkpoint.evaluate(str(model_dir), "notes_genre", LENGTHS, batch_size=4)
    (path,) = of_checkpoint.infer(
        str(model_dir), "notes_genre", LENGTHS, output=str(tmp_path / "p.parquet")
    )
    rows = pq.read_table(path).to_pylist()
    texts = list(read_rows(locations.prepared("notes", "by_group"), "labelled_texts", "test"))
    assert {row["text_id"]: row["class"] for row in rows} == {
        text["text_id"]: CLASSES[int(text["label"])] for text in texts
    }
    probabilities = np.array([row["probabilities"] for row in rows])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    labels = np.array([row["label"] for row in rows])
    expected = classification.multiclass_metrics(labels, probabilities) | {
        "num_examples": len(texts)
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert rows[0]["predicted_class"] == CLASSES[int(probabilities[0].argmax())]


# ---- zero-shot


def zero_shot(model_dir, **arguments):
    return of_checkpoint.evaluate(
        str(model_dir), "zero_shop_zero_shot", LENGTHS, batch_size=3, **arguments
    )


@pytest.mark.parametrize("contrast", [(), ("disliked", "liked")])
def test_zero_shot_equals_the_scorer_beside_baselines(world, bound, contrast):
    _, vocabulary, model, variables, model_dir = world
    bound("likelihood_rows.contrast", contrast)
    metrics = zero_shot(model_dir)
    prepared = locations.prepared("tiny-shop", "leave_one_out")
    rows = list(read_rows(prepared, "groups", "test"))
    # Without a word, the first outcome of the template and the last.
    labels = Contrast(*(contrast or ("liked", "disliked")))
    scorer = LikelihoodScorer(model, variables, vocabulary, EngineOptions(48, 48), labels)
    scores = np.concatenate(
        scorer.score_requests([r["history"] for r in rows], [r["candidates"] for r in rows])
    )
    labels = np.concatenate([r["labels"] for r in rows])
    items = np.concatenate([r["item_indices"] for r in rows])
    assert metrics["auc"] == classification.auc(labels, scores)
    popularity = np.bincount(interactions(prepared, "train").items, minlength=6)[items]
    assert metrics["popularity/auc"] == classification.auc(labels, popularity)
    assert metrics["popularity/auc"] != 0.5 or metrics["item_mean/auc"] != 0.5
    users = np.concatenate([np.full(len(r["labels"]), r["user_index"]) for r in rows])
    # Histories of test rows hold validation events.
    parts = [interactions(prepared, part) for part in ("train", "validation")]
    shown, liked = (np.concatenate([getattr(p, n) for p in parts]) for n in ("users", "labels"))
    likes, seen = (np.bincount(shown, w, 9) for w in (liked, None))
    shares = (likes + 5 * liked.mean()) / (seen + 5)
    assert metrics["user_mean/auc"] == classification.auc(labels, shares[users])
    chance = np.random.default_rng(0).random(len(labels))
    assert metrics["chance/auc"] == classification.auc(labels, chance)
    assert metrics["num_examples"] == len(labels)
    (model_dir / "inference").mkdir(exist_ok=True)
    calibrated = (str(model_dir), "zero_shop_zero_shot", LENGTHS)
    odds = scores.astype(np.float64)
    log_loss = classification.log_loss(labels, 1 / (1 + np.exp(-odds)))
    assert metrics["log_loss"] == pytest.approx(log_loss, abs=1e-5)
    of_users = classification.log_loss(labels, shares[users])
    assert metrics["user_mean/log_loss"] == pytest.approx(of_users)
    # Scaled as was learnt, here on the very rows that it is evaluated on.
    metrics = zero_shot(model_dir, split="validation")
    found = calibrate(*calibrated)
    learnt = found["zero_shop_zero_shot"]
    assert learnt.before == pytest.approx(metrics["log_loss"], abs=1e-5)
    assert f"zero_shop_zero_shot: log loss {learnt.quality:.4f} instead of" in report(found)
    with gin.unlock_config():
        gin.parse_config_file(str(model_dir / "inference" / "zero_shop_zero_shot_scaling.gin"))
    fitted = zero_shot(model_dir, split="validation")
    assert fitted["log_loss"] == pytest.approx(learnt.quality, abs=1e-5)
    assert fitted["log_loss"] < metrics["log_loss"]
    assert fitted["auc"] == pytest.approx(metrics["auc"])


# ---- mixtures and vocabularies of several data sets


def test_rates_come_from_gin(world, bound):
    bound("mixture_rates.rates", {"notes_infilling": 3.0})
    mixture = seqio.MixtureRegistry.get("all_language")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {"notes_infilling": 3.0, "zero_shop_generation": 1.0}
    bound("mixture_rates.rates", {"notes_infiling": 3.0})
    with pytest.raises(
        ConfigError, match=r"names 'notes_infiling', which is no task.*infilling'\?"
    ):
        mixture.get_rate(next(iter(mixture.tasks)))
    bound("mixture_rates.rates", {"notes_infilling": 0})
    with pytest.raises(ConfigError, match="above 0"):
        mixture.get_rate(next(iter(mixture.tasks)))


def test_a_shared_vocabulary_has_its_own_folder(world, bound):
    folder = world[0]
    assert locations.vocabulary_file("any", "split") == folder / "everything" / "vocabulary.model"
    bound("vocabulary_file.path", "/elsewhere")
    with pytest.raises(ConfigError, match="set one"):
        locations.vocabulary_file("any", "split")
