"""Task data that do not fit the model are refused before the first step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import PromptConfig
from m6rec_jax.pipeline import preprocessors
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.source import PreparedSource, SeqioVocabulary
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.task_data import check_labels
from tests.pipeline import shop_rows
from tests.training.toy_run import toy_config, toy_train

TASK = "training_shop_groups"
LENGTHS = {"inputs": 48, "targets": 48}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    """The vocabulary of a shop, of which `TASK` is registered."""
    folder = tmp_path_factory.mktemp("data")
    text = shop_rows.make_vocabulary(folder)
    vocabulary = SeqioVocabulary(lambda: text)
    prepared = shop_rows.write_views(folder)["groups"]
    rows = functools.partial(preprocessors.scoring_rows, vocabulary=vocabulary, task_name=TASK)
    seqio.TaskRegistry.add(
        TASK,
        source=PreparedSource(lambda: prepared, shuffle_buffer_size=8),
        preprocessors=[rows],
        output_features={
            feature: seqio.Feature(vocabulary, add_eos=False, dtype=tf.as_dtype(spec.dtype))
            for feature, spec in TASK_FEATURES.items()
        },
        shuffle_buffer_size=None,
    )
    yield text
    seqio.TaskRegistry.remove(TASK)


def test_a_vocabulary_larger_than_the_embedding_names_both_and_the_fix(
    text: Vocabulary, tmp_path: Path
) -> None:
    settings = {"mixture_or_task_name": TASK, "task_feature_lengths": LENGTHS, "batches": None}
    words = rf"shop.model\) has {text.size} ids.*VOCAB_SIZE = {text.size}"
    with pytest.raises(ConfigError, match=words):
        toy_train(tmp_path, 1, model=toy_config(vocab_size=text.size - 128), **settings)


def test_a_label_without_a_class_is_refused() -> None:
    """It would train as a loss of 0, and count."""
    labels = np.array([[-1, 1, -1], [2, -1, 0], [-1, -1, -1]], np.int32)
    batch = {"decoder_labels": labels, "task_ids": np.array([[0], [1], [2]], np.int32)}
    sizes = {"num_tasks": 3, "num_prompts": 3, "num_options": 3, "head": "option"}
    check_labels(batch, PromptConfig(**sizes, task_num_options=(2, 3, 0)))
    with pytest.raises(ConfigError, match=r"prompt row 1 has the label 2, .* num_options = 2 cl"):
        check_labels(batch, PromptConfig(**sizes, task_num_options=(3, 2, 0)))
    with pytest.raises(ConfigError, match=r"prompt row 0 has the label 1, .* num_options = 0 cl"):
        check_labels(batch, PromptConfig(**sizes, task_num_options=(0, 3, 0)))
    with pytest.raises(ConfigError, match=r"prompt row 1 has the label 2"):
        check_labels(batch, PromptConfig(num_tasks=3, num_options=2, head="linear"))
    check_labels(batch, PromptConfig())  # language alone
    check_labels({"task_ids": batch["task_ids"]}, PromptConfig(**sizes))
