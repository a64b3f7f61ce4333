"""Reviews in PETER's format: splits, and every kind of bad row."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.review_files import Review, read_reviews
from m6rec_jax.errors import DataError


def record(i, **changes):
    return {
        "user": f"u{i}",
        "item": f"i{i % 3}",
        "rating": 1 + i % 5,
        "template": (f"feature{i}", "good", f"the feature{i} is good", 1 if i % 2 else -1),
    } | changes


RECORDS = [record(i) for i in range(10)]
INDEX = {"train": [5, 0, 1, 2, 3, 4], "validation": [9, 6], "test": [7, 8]}


def write_index(folder, index):
    folder.mkdir(exist_ok=True)
    for split, rows in index.items():
        (folder / f"{split}.index").write_text(" ".join(map(str, rows)))
    return folder


def write(folder, records):
    path = folder / "reviews.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def test_reviews_of_all_parts(tmp_path):
    path = write(tmp_path, RECORDS)
    reviews, report = read_reviews(path, write_index(tmp_path / "1", INDEX))
    assert [review.row for review in reviews] == list(range(10))
    assert reviews[6] == Review(
        row=6,
        part="validation",
        user="u6",
        item="i0",
        feature="feature6",
        opinion="good",
        sentence="the feature6 is good",
    )
    for part, rows in INDEX.items():
        assert {review.row for review in reviews if review.part == part} == set(rows)
    assert not report.num_rejected


def test_without_index_files(tmp_path):
    reviews, _ = read_reviews(write(tmp_path, RECORDS))
    assert len(reviews) == 10
    assert {review.part for review in reviews} == {None}


BAD = {
    "user is missing": {"user": None},
    "item is empty": {"item": " "},
    "item is not a text": {"item": 1.5},
    "user is not a text": {"user": True},
    "template is missing": {"template": None},
    "template is not (feature, opinion, sentence, sentiment)": {"template": ("a", "b", "c")},
    "feature is empty": {"template": ("", "b", "c", 1)},
    "opinion is not a text": {"template": ("a", None, "c", 1)},
    "sentence is not a text": {"template": ("a", "b", ["c"], 1)},
    "sentence is empty": {"template": ("a", "b", "", 1)},
}


def test_every_bad_row_is_counted_with_its_reason(tmp_path):
    records = [record(i, **changes) for i, changes in enumerate(BAD.values())]
    records += [["not", "a", "dictionary"], record(99)]
    reviews, report = read_reviews(write(tmp_path, records))
    assert [review.row for review in reviews] == [len(records) - 1]
    assert report.num_rejected == dict.fromkeys([*BAD, "not a dictionary"], 1)
    assert report.examples["item is not a text"] == "reviews.jsonl, row 2: 1.5"


def test_bad_lines_are_rows(tmp_path):
    path = tmp_path / "reviews.jsonl"
    good = json.dumps(record(0)).encode()
    deep = b"[" * 100_000
    surrogate = json.dumps(record(1, user="\ud800")).encode()
    lines = [b"\xef\xbb\xbf" + good, b"", b"{", b'{"user": "\xff"}', deep, surrogate, good]
    path.write_bytes(b"\n".join(lines))
    # The blank line is no row.
    reviews, report = read_reviews(path)
    assert [review.row for review in reviews] == [0, 5]
    assert report.num_rejected == {"not JSON": 2, "not UTF-8": 1, "user is not valid Unicode": 1}


def test_ids_may_be_numbers(tmp_path):
    path = write(tmp_path, [record(0, user=17, item=0)])
    ((review,), _) = read_reviews(path)
    assert (review.user, review.item) == ("17", "0")


def test_an_opinion_may_be_empty(tmp_path):
    path = write(tmp_path, [record(0, template=["a", "", "c", 1.0])])
    ((review,), _) = read_reviews(path)
    assert review.opinion == ""


def test_faults_of_index_files_are_counted(tmp_path):
    index = {"train": [0, 1, 1, 1, 12], "validation": [2, -1], "test": [3, 10, 11]}
    folder = write_index(tmp_path / "1", index)
    reviews, report = read_reviews(write(tmp_path, RECORDS), folder)
    assert [review.row for review in reviews] == [0, 1, 2, 3]
    assert report.num_rejected == {
        "repeated in an index file": 2,
        "no such row": 4,
        "in no index file": 6,
    }
    assert report.examples["repeated in an index file"] == "train.index: 1"


def test_a_row_in_two_splits_is_refused(tmp_path):
    folder = write_index(tmp_path / "1", INDEX | {"test": [7, 8, 3]})
    with pytest.raises(DataError, match=r"row 3, in train\.index and test\.index"):
        read_reviews(write(tmp_path, RECORDS), folder)


@given(st.lists(st.sampled_from(["train", "validation", "test", "none"]), min_size=1, max_size=10))
@settings(max_examples=50)
def test_any_assignment_comes_back(tmp_path_factory, splits):
    folder = tmp_path_factory.mktemp("reviews")
    index = {name: [i for i, split in enumerate(splits) if split == name] for name in INDEX}
    path = write(folder, RECORDS[: len(splits)])
    wanted = {i: split for i, split in enumerate(splits) if split != "none"}
    if not wanted:
        with pytest.raises(DataError, match="name no row"):
            read_reviews(path, write_index(folder, index))
        return
    reviews, _ = read_reviews(path, write_index(folder, index))
    assert {review.row: review.part for review in reviews} == wanted


def test_refusals_before_anything_is_read(tmp_path):
    path = write(tmp_path, RECORDS)
    with pytest.raises(DataError, match="must end in"):
        read_reviews(tmp_path / "reviews.csv")
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_reviews(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"train\.index cannot be read"):
        read_reviews(path, tmp_path)
    folder = write_index(tmp_path / "1", INDEX | {"test": [7, "8,9"]})
    with pytest.raises(DataError, match=r"test\.index must hold row numbers .* holds '8,9'"):
        read_reviews(path, folder)
    write_index(folder, {"test": [7, 10**20]})
    with pytest.raises(DataError, match="holds '100000000000000000000'"):
        read_reviews(path, folder)


def test_a_file_without_any_review_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        read_reviews(write(tmp_path, []))
    bad = [record(0, user=None), record(1, user=None), 3]
    with pytest.raises(DataError, match=r"3 rows, but none gives a review: user is missing \(2; "):
        read_reviews(write(tmp_path, bad))
    folder = write_index(tmp_path / "1", {"train": [3, 4], "validation": [], "test": []})
    with pytest.raises(DataError, match=r"none gives a review: no such row \(2; "):
        read_reviews(write(tmp_path, [record(0)]), folder)
