"""Reviews as explanations to write: told by training reviews alone, never by themselves."""

import json

import pytest

from m6rec_jax.data.corpora import prepare_corpus
from m6rec_jax.data.reviews import Reviews
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import read_rows


def review(user, item, feature, opinion):
    sentence = f"the {feature} is {opinion}"
    template = [feature, opinion, sentence, 1]
    return {"user": user, "item": item, "rating": 4, "template": template}


REVIEWS = [
    review("u1", "i1", "pool", "great"),
    review("u1", "i2", "pool", "cold"),
    review("u2", "i1", "staff", "kind"),
    review("u1", "i1", "bar", "loud"),  # validation
    review("u1", "i1", "roof", "nice"),  # test
    review("u3", "i3", "bed", "soft"),  # test
]
INDEX = {"train": "0 1 2", "validation": "3", "test": "4 5"}


def write_reviews(folder, records=REVIEWS, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "reviews.jsonl").write_text(lines)
    spec = {"name": "hotels", "file": "reviews.jsonl", "index": "1"} | changes
    (folder / "1").mkdir(exist_ok=True)
    for part, rows in INDEX.items():
        (folder / "1" / f"{part}.index").write_text(rows)
    spec = {name: value for name, value in spec.items() if value is not None}
    (folder / "reviews.json").write_text(json.dumps(spec))
    return folder


def sources(prepared, part):
    return {row["text_id"]: row["source"] for row in read_rows(prepared, "explanations", part)}


def test_a_training_review_is_told_without_itself(tmp_path):
    prepared = prepare_corpus(Reviews(write_reviews(tmp_path / "hotels")), tmp_path, progress=False)
    assert sources(prepared, "train") == {
        "0": ["writes of pool", "others say kind staff"],
        "1": ["writes of pool", ""],
        "2": ["", "others say great pool"],
    }


def test_later_parts_are_told_by_training_reviews_alone(tmp_path):
    prepared = prepare_corpus(Reviews(write_reviews(tmp_path / "hotels")), tmp_path, progress=False)
    told = ["writes of pool", "others say great pool, kind staff"]
    assert sources(prepared, "validation") == {"3": told}
    assert sources(prepared, "test") == {"4": told, "5": ["", ""]}
    (row,) = read_rows(prepared, "explanations", "validation")
    assert (row["prefix"], row["target"]) == ("bar:", "the bar is loud")
    assert row["features"] == ["bar"]


def test_without_index_files_parts_are_drawn(tmp_path):
    records = [review(f"u{n}", "i", "pool", "great") for n in range(60)]
    folder = write_reviews(tmp_path / "hotels", records, index=None)
    prepared = prepare_corpus(Reviews(folder), tmp_path, progress=False)
    assert sum(prepared.num_rows("explanations").values()) == 60


def test_rows_in_no_index_file_are_left_out(tmp_path):
    folder = write_reviews(tmp_path / "hotels")
    (folder / "1" / "test.index").write_text("5\n")
    assert "5 reviews (3 train, 1 validation, 1 test)" in Reviews(folder).summary()
    reviews = Reviews(folder).reviews
    assert [(review.row, review.split) for review in reviews][3:] == [
        (3, "validation"),
        (5, "test"),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        *("{", "", '{"user": "\\ud800"}', '["not", "an", "object"]', '{"user": "u", "item": "i"}'),
        json.dumps({**REVIEWS[0], "user": None}),
        *(
            json.dumps({**REVIEWS[0], "template": template})
            for template in (["a", "b", "c"], ["", "b", "c", 1], ["a", "b", 3, 1])
        ),
    ],
)
def test_a_line_that_is_no_review_is_named(tmp_path, bad):
    folder = write_reviews(tmp_path / "hotels", index=None)
    (folder / "reviews.jsonl").write_text(f"\n{bad}\n")
    where = "line 2" if bad else "holds no review"
    with pytest.raises(DataError, match=where):
        Reviews(folder).summary()


@pytest.mark.parametrize("rows", ["4 5 3", "4 6", "4 -1", "4,5"])
def test_index_files_that_do_not_fit_are_refused(tmp_path, rows):
    folder = write_reviews(tmp_path / "hotels")
    (folder / "1" / "test.index").write_text(rows)
    with pytest.raises(DataError, match=r"test\.index"):
        Reviews(folder).summary()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "none.jsonl"}, r"none\.jsonl does not exist"),
        ({"index": "2"}, r"train\.index does not exist"),
        ({"idnex": "1"}, "'index'"),
    ],
)
def test_a_wrong_description_is_told(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        Reviews(write_reviews(tmp_path / "hotels", **changes))
