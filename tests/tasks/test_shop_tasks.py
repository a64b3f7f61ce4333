"""The tasks of a prepared data set."""

import json
import shutil

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.batches import BatchIterator
from m6rec_jax.pipeline.registration import (
    evaluated_tasks,
    register_mixture,
    register_recommendation_tasks,
    task_info,
    unregister,
)
from m6rec_jax.pipeline.row_layout import job_id

pytestmark = pytest.mark.usefixtures("no_gin")

LENGTHS = {"inputs": 64, "targets": 24}


def test_names(shop_tasks):
    kinds = {
        **dict.fromkeys(("infilling", "generation", "outcomes"), "language"),
        **dict.fromkeys(("ctr", "ctr_ratings"), "scoring"),
        **{"retrieval": "retrieval", "zero_shot": "likelihood", "embeddings": "embeddings"},
    }
    prefix = "tiny_shop_"
    mixtures = ["pretrain", "foundation", "foundation_without_outcomes"]
    assert sorted(shop_tasks) == sorted(prefix + name for name in (*kinds, *mixtures))
    assert {name: task_info(prefix + name).kind for name in kinds} == kinds
    for mixture, names in (
        ("pretrain", {"infilling", "generation"}),
        ("foundation", {"infilling", "generation", "outcomes", "retrieval"}),
    ):
        assert {t.name for t in evaluated_tasks(prefix + mixture)} == {prefix + n for n in names}
    assert task_info("tiny_shop_ctr_ratings").positive_classes == (3, 4)


def test_rates_of_the_foundation(shop_tasks):
    with gin.unlock_config():
        gin.parse_config("mixture_rates.rates = {'outcomes': 4.0}")
    mixture = seqio.MixtureRegistry.get("tiny_shop_foundation")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {f"tiny_shop_{k}": 1.0 for k in ("infilling", "generation", "retrieval")} | {
        "tiny_shop_outcomes": 4.0
    }
    with gin.unlock_config():
        gin.parse_config("mixture_rates.rates = {'tiny_shop_retrieval': 0.0}")
    with pytest.raises(ConfigError, match="must be above 0"):
        mixture.get_rate(seqio.TaskRegistry.get("tiny_shop_retrieval"))


def test_a_task_of_seqio_is_mixed_with_tasks_of_prepared_data(shop_tasks):
    """Which seqio refuses, where features differ; the vocabulary is one file in two shapes."""
    file = locations.load_vocabulary("tiny-shop", "leave_one_out").model_file
    feature = seqio.Feature(seqio.SentencePieceVocabulary(file))
    seqio.TaskRegistry.add(
        "plain",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensors(
                {"inputs": "Alpha", "targets": "comedy"}
            ),
            splits=["train"],
        ),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={"inputs": feature, "targets": feature},
    )
    gin.bind_parameter("mixture_rates.rates", {"plain": 3.0})
    mixture = register_mixture("plain_and_shop", ["plain", "tiny_shop_generation"])
    try:
        assert {task.kind for task in evaluated_tasks(mixture)} == {"text_to_text", "language"}
        iterator = BatchIterator(mixture, LENGTHS, 8, num_shards=1)
        jobs = np.concatenate([next(iterator)["decoder_job_ids"][:, 0] for _ in range(40)])
        assert np.mean(jobs == job_id("plain")) == pytest.approx(0.75, abs=0.08)
    finally:
        unregister(["plain", mixture])


@pytest.mark.parametrize("kind", ["infilling", "outcomes", "ctr_ratings", "retrieval", "pretrain"])
def test_training_batches_resume(shop_tasks, kind):
    def batches():
        name = f"tiny_shop_{kind}"
        return BatchIterator(name, LENGTHS, 2, num_shards=1, pack=kind == "pretrain")

    iterator, resumed = batches(), batches()
    next(iterator)
    resumed.load_state_dict(iterator.state_dict())
    for _ in range(3):
        found = next(resumed)
        for feature, values in next(iterator).items():
            np.testing.assert_array_equal(found[feature], values, err_msg=feature)


def test_data_that_were_prepared_anew_are_refused(shop_tasks, shop_dir, tmp_path, monkeypatch):
    """There may be as many rows as before; a state has some of the old ones in its buffer."""

    def batches():
        return BatchIterator("tiny_shop_ctr", LENGTHS, 2, num_shards=1)

    states = batches().state_dict()
    shutil.copytree(shop_dir, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "tiny-shop.leave_one_out" / "prepare.json"
    described = json.loads(manifest.read_text())
    described["views"]["groups"]["fingerprint"] = "of other data"
    manifest.write_text(json.dumps(described))
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(CheckpointError, match="the data of tiny_shop_ctr were prepared anew"):
        batches().load_state_dict(states)
    # Rows of an update are those of its files, whatever the split's were.
    described["updates"] = [{"name": f"update_{n}", "fingerprint": "ab"[n - 1]} for n in (1, 2)]
    manifest.write_text(json.dumps(described))
    parts = ("train", "update_1", "update_2")
    found = {split: task_info("tiny_shop_ctr").fingerprint(split) for split in parts}
    assert found["train"] == "of other data"
    assert len(set(found.values())) == 3
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(shop_dir))


def test_data_and_vocabulary_are_named_when_missing(shop_tasks, tmp_path, monkeypatch):
    gin.bind_parameter("vocabulary_file.path", str(tmp_path / "none.model"))
    with pytest.raises(ConfigError, match=r"none\.model: train one with `m6rec vocab train`"):
        locations.load_vocabulary("tiny-shop", "leave_one_out")
    gin.bind_parameter("data_dir.path", str(tmp_path))
    with pytest.raises(
        DataError, match=r"m6rec data prepare tiny-shop --gin\.prepare\.split=leave_one_out"
    ):
        BatchIterator("tiny_shop_ctr", LENGTHS, 4)


def test_a_split_may_use_the_vocabulary_of_another(shop_dir, monkeypatch):
    monkeypatch.setenv("M6REC_DATA_DIR", str(shop_dir))
    names = register_recommendation_tasks(
        "no_split", "tiny-shop", split="not_prepared", vocabulary_split="leave_one_out"
    )
    try:
        features = seqio.get_mixture_or_task("no_split_ctr").output_features
        found = features["encoder_input_tokens"].vocabulary.text
        assert found == locations.load_vocabulary("tiny-shop", "leave_one_out")
    finally:
        unregister(names)
