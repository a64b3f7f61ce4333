"""Settings that follow from the data: measured against the rows, kept, and told apart by labels."""

import numpy as np
import pytest
import seqio

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.pipeline import fitted_settings, locations
from m6rec_jax.pipeline.prepared_rows import read_rows
from m6rec_jax.pipeline.registration import unregister
from tasks.own_data import own_task

DATA = ("tiny-shop", "leave_one_out")


@pytest.fixture(autouse=True)
def of_shop(shop_dir, monkeypatch):
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(shop_dir))


def test_rows_hold_nearly_everything_and_no_more(monkeypatch):
    monkeypatch.setattr(fitted_settings, "_LEAST", 8)
    prepared, vocabulary = locations.prepared(*DATA), locations.load_vocabulary(*DATA)
    lengths = fitted_settings.measured_lengths(*DATA)

    def tokens(texts):
        return np.array([len(vocabulary.encode(text)) for text in texts])

    histories, fits = [], []
    for view, column in (("groups", "candidates"), ("next_items", "items")):
        for row in read_rows(prepared, view, "train"):
            histories.append(2 + tokens(row["history"]).sum())
            fits += (2 + tokens(row[column]) <= lengths["targets"] // len(row[column])).tolist()
    for row in read_rows(prepared, "documents", "train"):
        target = len(vocabulary.encode(row["target"]))
        fits.append(2 + target <= lengths["targets"])
        if len(row["source"]):  # none of an item's description
            histories.append(2 + tokens(row["source"]).sum() + target)
    assert np.mean(fits) >= 0.99
    assert np.mean(np.array(histories) <= lengths["inputs"]) >= 0.9
    assert np.mean(np.array(histories) <= lengths["inputs"] - 8) < 0.9
    assert lengths["inputs"] % 8 == lengths["targets"] % 8 == 0


def test_outcomes_are_asked_for_where_there_are_some(monkeypatch):
    assert fitted_settings.vocabulary_rows(*DATA) % 128 == 0
    assert fitted_settings.outcome_words(*DATA) == ("disliked", "liked")
    names = {own_task(*DATA[:1], "foundation", split=DATA[1])}
    monkeypatch.setattr(Prepared, "outcome_words", lambda self: None)
    names.add(own_task(*DATA[:1], "foundation", split=DATA[1]))
    prefix = "tiny_shop_leave_one_out_"
    assert names == {f"{prefix}foundation", f"{prefix}foundation_without_outcomes"}
    registered = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    unregister([name for name in registered if name.startswith(prefix)])
