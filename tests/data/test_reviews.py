"""Reviews as explanations to write: told by training reviews alone, never by themselves."""

import json

import pytest

from m6rec_jax.data.rendering.corpora import prepare_corpus
from m6rec_jax.data.rendering.reviews import Reviews
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import read_rows


def review(user, item, feature, opinion, split="train"):
    sentence = f"the {feature} is {opinion}"
    template = [feature, opinion, sentence, 1]
    return {"user": user, "item": item, "rating": 4, "split": split, "template": template}


REVIEWS = [
    review("u1", "i1", "pool", "great"),
    review("u1", "i2", "pool", "cold"),
    review("u2", "i1", "staff", "kind"),
    review("u1", "i1", "bar", "loud", "validation"),
    review("u1", "i1", "roof", "nice", "test"),
    review("u3", "i3", "bed", "soft", "test"),
]


def write_reviews(folder, records=REVIEWS, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "reviews.jsonl").write_text(lines)
    spec = {"name": "hotels", "file": "reviews.jsonl"} | changes
    (folder / "reviews.json").write_text(json.dumps(spec))
    return folder


def sources(prepared, split):
    return {row["text_id"]: row["source"] for row in read_rows(prepared, "explanations", split)}


def test_a_review_is_described_by_the_training_reviews_but_not_by_itself(tmp_path):
    corpus = Reviews(write_reviews(tmp_path / "hotels"))
    assert corpus.summary() == "hotels: 6 reviews (3 train, 1 validation, 2 test)"
    prepared = prepare_corpus(corpus, tmp_path, progress=False)
    assert sources(prepared, "train") == {
        "0": ["writes of pool", "others say kind staff"],
        "1": ["writes of pool", ""],
        "2": ["", "others say great pool"],
    }
    by_training = ["writes of pool", "others say great pool, kind staff"]
    assert sources(prepared, "validation") == {"3": by_training}
    assert sources(prepared, "test") == {"4": by_training, "5": ["", ""]}
    (row,) = read_rows(prepared, "explanations", "validation")
    assert (row["prefix"], row["target"]) == ("bar:", "the bar is loud")
    assert row["features"] == ["bar"]


@pytest.mark.parametrize(
    "bad",
    [
        *("{", "", '{"other": ' + "[" * 100_000, '{"user": "\\ud800"}', '["no"]', '{"user": "u"}'),
        json.dumps({**REVIEWS[0], "split": "dev"}),
        json.dumps({**REVIEWS[0], "template": ["", "b", "c", 1]}),
    ],
)
def test_a_line_that_is_no_review_is_named(tmp_path, bad):
    folder = write_reviews(tmp_path / "hotels")
    (folder / "reviews.jsonl").write_text(f"\n{bad}\n")
    with pytest.raises(DataError, match="line 2" if bad else "holds no review"):
        Reviews(folder).summary()
