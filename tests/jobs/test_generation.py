"""Texts for requests: the same row gives the same text, with the probability that it has."""

import collections

import gin
import numpy as np
import pytest

from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.generation import GenerationAnswers
from tests.serving.served_films import request

SAMPLING = "Decoding.temperature = 1.5\nDecoding.seed = 3\n"


@pytest.fixture
def configured():
    def configure(text):
        gin.clear_config()
        gin.parse_config(text)

    yield configure
    gin.clear_config()


def asking(number, candidates=2):
    return request(number) | {"candidates": [f"f{(number + n) % 12}" for n in range(candidates)]}


def texts(found):
    return {row["number"]: row["texts"] for row in found}


def test_a_sampled_text_depends_on_its_row_alone(infer, configured):
    """Neither chunks nor what stands before a row, rejected or not, changes what is drawn."""
    configured(SAMPLING)
    plain = [asking(n) for n in range(9)]
    whole = texts(infer(plain, "titles", "whole")[0])
    for size in (1, 4):
        assert texts(infer(plain, "titles", f"chunks{size}", chunk_size=size)[0]) == whole
    # Others of the file ask for more, for nothing, or cannot be answered.
    among = [*plain]
    among[1], among[2], among[4] = asking(1, 5), asking(2, 0), asking(4) | {"time": "then"}
    found, rejected = infer(among, "titles", "among")
    assert [row["row"] for row in rejected] == [4]
    others = texts(found)
    assert {n: others[n] for n in (0, 3, 5, 6, 7, 8)} == {n: whole[n] for n in (0, 3, 5, 6, 7, 8)}
    assert others[1][:2] == whole[1]
    # Rows and candidates draw by themselves, though some ask for the same.
    drawn = collections.Counter(text for row in whole.values() for text in row)
    assert drawn.most_common(1)[0][1] < 3
    same = [asking(3, 0) | {"candidates": ["f0", "f0"]}] * 2
    first, second = (row["texts"] for row in infer(same, "titles", "same")[0])
    assert len({*first, *second}) == 4


def test_going_on_with_other_chunks_changes_no_text(infer, configured, monkeypatch, tmp_path):
    configured(SAMPLING)
    plain = [asking(n) for n in range(9)]
    whole, _ = infer(plain, "titles", "whole")
    answer, calls = GenerationAnswers.answer, []

    def dies(self, accepted):
        calls.append(len(accepted))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, accepted)

    monkeypatch.setattr(GenerationAnswers, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        infer(plain, "titles", "killed", chunk_size=4)
    monkeypatch.setattr(GenerationAnswers, "answer", answer)
    resumed, _ = infer(plain, "titles", "killed", chunk_size=2)
    assert resumed == whole
    configured(SAMPLING.replace("seed = 3", "seed = 4"))
    assert texts(infer(plain, "titles", "other")[0]) != texts(whole)


@pytest.mark.parametrize("job", [None, "title_recommendation"])
def test_probabilities_that_are_no_numbers_are_refused(infer, monkeypatch, job):
    texts, nothing = Generator._texts, {"log_probability": np.nan}
    monkeypatch.setattr(
        Generator, "_texts", lambda *given: [text._replace(**nothing) for text in texts(*given)]
    )
    with pytest.raises(DataError, match="not finite"):
        infer([asking(0)], "titles", job=job)
