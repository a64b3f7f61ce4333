"""Tasks that a user registers with seqio: rows, shards, resumption, sizes, metrics."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.batches import BatchIterator, EvaluationBatches
from m6rec_jax.pipeline.registration import task_info, unregister
from m6rec_jax.pipeline.task_rows import find_provider, task_vocabulary
from m6rec_jax.text.rows import generation_row
from m6rec_jax.text.vocabulary_training import train_vocabulary

LENGTHS = {"inputs": 12, "targets": 8}
ROWS = {"train": 22, "validation": 7}


def line(split, number):
    return f"{split} thing {number}\tit is {number % 3}"


def parse(rows):
    def columns(row):
        inputs, targets = tf.unstack(tf.strings.split(row, "\t"), num=2)
        return {"inputs": inputs, "targets": targets}

    return rows.map(columns)


def drop_and_double(rows):
    """Rows with an answer of '0' go, others come twice: sizes are not those of the source."""
    kept = rows.filter(lambda row: tf.not_equal(row["targets"], "it is 0"))
    return kept.flat_map(lambda row: tf.data.Dataset.from_tensors(row).repeat(2))


def last_word(text, example, is_target):
    assert {"inputs", "targets"} <= example.keys()
    return (is_target, text.split()[-1] if text else "")


def same(targets, predictions):
    assert all(is_target for is_target, _ in targets)
    assert not any(is_target for is_target, _ in predictions)
    pairs = zip(targets, predictions, strict=True)
    return {"same": np.mean([target[1] == text[1] for target, text in pairs])}


def mean_score(targets, scores):
    return {"mean_score": np.mean(scores), "targets": seqio.metrics.Scalar(len(targets))}


def best_aux(targets, predictions, aux_values):
    return {"best": max(aux_values["scores"]), "text": seqio.metrics.Text("not shown")}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Tasks over equal rows by source, one whose rows are dropped and doubled."""
    folder = tmp_path_factory.mktemp("seqio")
    lines = {split: [line(split, n) for n in range(size)] for split, size in ROWS.items()}
    texts = (text for rows in lines.values() for row in rows for text in row.split("\t"))
    train_vocabulary(texts, folder / "v.model", size=330)
    vocabulary = seqio.SentencePieceVocabulary(str(folder / "v.model"), extra_ids=100)
    for split, rows in lines.items():
        for part in range(5):
            (folder / f"{split}-{part}.tsv").write_text("\n".join(rows[part::5]) + "\n")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")

    def function(split, shuffle_files):
        del shuffle_files
        return tf.data.Dataset.from_tensor_slices(lines[split])

    sources = {
        "one_file": seqio.TextLineDataSource({s: str(folder / f"{s}.tsv") for s in ROWS}),
        "five_files": seqio.TextLineDataSource({s: str(folder / f"{s}-*.tsv") for s in ROWS}),
        "function": seqio.FunctionDataSource(function, splits=list(ROWS)),
        "changed": seqio.FunctionDataSource(function, splits=list(ROWS)),
        "missing": seqio.TextLineDataSource({"train": str(folder / "no.tsv")}),
    }
    for name, source in sources.items():
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[
                parse,
                *([drop_and_double] if name == "changed" else []),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features={key: seqio.Feature(vocabulary) for key in ("inputs", "targets")},
            postprocess_fn=last_word,
            metric_fns=[same, mean_score, best_aux],
        )
    yield tuple(sources)
    unregister([*sources])


def texts_of(name, batch):
    vocabulary = task_vocabulary(name)
    return [vocabulary.decode(ids) for ids in batch["encoder_input_tokens"]]


def test_rows_are_those_that_requests_are_read_as(names):
    """The ids of seqio's tokenizer are laid out as texts are that are served."""
    (batch,) = EvaluationBatches("one_file", LENGTHS, 7)
    for number in range(7):
        inputs, targets = line("validation", number).split("\t")
        expected = generation_row(task_vocabulary("one_file"), [inputs], targets, 12, 8)
        for feature in ("encoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"):
            values = batch[feature][number]
            np.testing.assert_array_equal(values[: len(expected[feature])], expected[feature])
            assert not values[len(expected[feature]) :].any()


@pytest.mark.parametrize(
    ("source", "num_shards"), [("one_file", 3), ("five_files", 3), ("function", 1), ("function", 3)]
)
def test_every_row_is_in_one_shard_and_a_run_resumes(names, source, num_shards):
    def batches():
        return BatchIterator(source, LENGTHS, num_shards, num_shards=num_shards, seed=1)

    iterator = batches()
    # Rows are shuffled across the borders of epochs: in the long run all of them come.
    number = 300 // num_shards
    found = [text for b in itertools.islice(iterator, number) for text in texts_of(source, b)]
    assert set(found) == {line("train", n).split("\t")[0] for n in range(ROWS["train"])}
    by_shard = [set(found[shard::num_shards]) for shard in range(num_shards)]
    assert sum(map(len, by_shard)) == ROWS["train"], "no row is in two shards"
    states = iterator.state_dict()
    expected = [next(iterator) for _ in range(5)]
    resumed = batches()
    resumed.load_state_dict(states)
    for batch in expected:
        for feature, values in next(resumed).items():
            np.testing.assert_array_equal(values, batch[feature])


@pytest.mark.parametrize(("processes", "sample"), [(1, 0), (3, 0), (3, 6)])
def test_sizes_that_nobody_says_are_counted_after_preprocessing(names, processes, sample):
    parts = [
        EvaluationBatches(
            *("changed", LENGTHS, 3), process_index=p, process_count=processes, sample=sample
        )
        for p in range(processes)
    ]
    # Of 0 .. 6 the targets of 0, 3 and 6 are dropped.
    total = min(8, sample or 8)
    assert {batches.read_rows for batches in parts} == {total}
    found = [batch for batches in parts for batch in batches]
    real = [batch["user_ids"][batch["example_weights"] > 0, 0] for batch in found]
    assert sorted(np.concatenate(real)) == list(range(total)), "rows are known by number"
    assert len({len(batches) for batches in parts}) == 1
    assert len(find_provider("changed").examples("validation", LENGTHS, total)) == total


def test_metrics_are_those_of_seqio(names):
    """Against `seqio.Evaluator`, which is given the same predictions and scores."""
    task = find_provider("five_files")
    rows = task.examples("validation", LENGTHS, 7)
    vocabulary = task_vocabulary("five_files")
    texts = [f"it is {n % 2}" for n in range(7)]
    tokens = np.array([[*vocabulary.encode(text), 1] for text in texts])
    log_probabilities, scores = -np.arange(7.0), np.linspace(-9, -1, 7)
    found = task.metrics(rows, tokens, log_probabilities, scores)
    evaluator = seqio.Evaluator(
        "five_files", seqio.EncDecFeatureConverter(pack=False), sequence_length=LENGTHS
    )
    theirs, _ = evaluator.evaluate(
        compute_metrics=True,
        predict_fn=lambda _: list(enumerate(tokens.tolist())),
        score_fn=lambda _: list(enumerate(scores.tolist())),
        predict_with_aux_fn=lambda _: (
            list(enumerate(tokens.tolist())),
            {"scores": log_probabilities.tolist()},
        ),
    )
    expected = theirs.result()["five_files"]
    expected["targets"] = expected["targets"].value
    del expected["text"]
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})
    assert 0 < found["same"] < 1


def test_what_the_model_cannot_read_is_refused(names):
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"])
    features = {
        "bytes": {key: seqio.Feature(seqio.ByteVocabulary()) for key in ("inputs", "targets")},
        "others": {"words": seqio.Feature(seqio.ByteVocabulary())},
    }
    for name, own in features.items():
        seqio.TaskRegistry.add(name, source=source, output_features=own)
    try:
        with pytest.raises(ConfigError, match="ByteVocabulary"):
            find_provider("bytes")
        with pytest.raises(ConfigError, match="words"):
            find_provider("others")
    finally:
        unregister(list(features))
    with pytest.raises(DataError, match=r"no\.tsv"):
        EvaluationBatches("missing", LENGTHS, 4, split="train")
    with pytest.raises(ConfigError, match="'one_file' was registered with seqio"):
        task_info("one_file").prepared()
