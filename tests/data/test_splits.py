"""Every split against a plain restatement of its definition, on random logs full of ties."""

import contextlib
import json

import numpy as np
import pytest

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.event_table import assign
from m6rec_jax.data.splitting.splits import EXCLUDED, TEST, TRAIN, VALIDATION, Split
from m6rec_jax.errors import DataError
from tests.data.conftest import declare_parts
from tests.data.plain_splits import plain_split


def test_users_and_held_out_items_are_drawn_by_their_ids() -> None:
    ids = [f"user {index}" for index in range(400)]
    codes = splits.by_name([*ids, *ids[::-1]], seed=3)
    assert codes[:400].tolist() == codes[400:][::-1].tolist()
    assert 300 < (codes[:400] == TRAIN).sum() < 340
    held_out = splits.is_held_out(ids, fraction=0.25, seed=3)
    assert 60 < held_out.sum() < 140
    # Neither who else there is nor the order matters.
    assert splits.by_name(ids[7:9], seed=3).tolist() == codes[7:9].tolist()
    again = splits.is_held_out(ids[::-1][:50], fraction=0.25, seed=3)
    assert again.tolist() == held_out[::-1][:50].tolist()
    assert (splits.by_name(ids, seed=4) != codes[:400]).any()
    assert (splits.is_held_out(ids, fraction=0.25, seed=4) != held_out).any()


def test_a_column_names_the_parts(write_shop) -> None:
    log = [(user, item, float(item), 1.0 + item) for user in range(3) for item in range(4)]
    folder = write_shop(log)
    with pytest.raises(DataError, match=r"declare it in dataset\.json"):
        assign(Dataset.open(folder), Split.parse("by_column"))
    random = np.random.default_rng(0)
    names = random.permutation([*splits.PART_NAMES] * 3).tolist()

    def declared(names: list[str | None]) -> Dataset:
        declare_parts(folder, names)
        return Dataset.open(folder)

    found = assign(declared(names), Split.parse("by_column"))
    assert [[*splits.PART_NAMES][code] for code in found.codes] == names
    few = assign(declared(names), Split.parse("few_shot:n=2,of=by_column"))
    assert (few.codes == splits.few_shot(found.codes, n=2, seed=0)).all()
    assert DatasetSpec.load(folder).to_dict() == json.loads((folder / "dataset.json").read_text())
    assert check_dataset(folder).ok
    # Of other parts nothing is guessed.
    for wrong, told in (
        ("valid", "'valid' is none of train, validation, test, context"),
        (None, "missing"),
    ):
        dataset = declared([wrong if row == 5 else name for row, name in enumerate(names)])
        with pytest.raises(DataError, match=f"row 5, column 'fold': .*{told}"):
            assign(dataset, Split.parse("by_column"))
        (problem,) = (p for p in check_dataset(folder).problems if p.severity == "error")
        assert (problem.kind, problem.rows, problem.column) == ("unknown_part", [5], "fold")


def test_few_shot_keeps_n_rows() -> None:
    codes = np.asarray([TRAIN] * 50 + [VALIDATION] * 5 + [TEST] * 5, np.int8)
    kept = splits.few_shot(codes, n=7, seed=1)
    assert splits.part_counts(kept) == {"train": 7, "validation": 5, "test": 5, "context": 43}
    assert (kept == splits.few_shot(codes, n=7, seed=1)).all()
    assert (kept != splits.few_shot(codes, n=7, seed=2)).any()
    alone = splits.few_shot(codes, n=7, seed=1, history="sampled")
    assert splits.part_counts(alone)["excluded"] == 43
    with pytest.raises(DataError, match="n=51 of 50"):
        splits.few_shot(codes, n=51, seed=1)


def test_empty_part_names_split_and_part(write_shop) -> None:
    dataset = Dataset.open(write_shop([(0, 1, 1.0, 4.0), (0, 2, 2.0, 4.0), (1, 1, 3.0, 4.0)]))
    with pytest.raises(DataError, match=r"'leave_one_out': part 'validation' is empty.*train 3"):
        assign(dataset, Split.parse("leave_one_out"))


def test_parse() -> None:
    assert Split.parse("leave_one_out").name == "leave_one_out"
    few = Split.parse("few_shot:n=256,seed=1")
    assert (few.kind, few.name) == ("few_shot", "few_shot-n256-seed1")
    assert few.arguments() == {"n": 256, "seed": 1, "history": "all"}
    declared = {"per_user_temporal": {"train": 0.6}, "tiny": {"kind": "few_shot", "n": 3}}
    assert Split.parse("per_user_temporal", declared).options == {"train": 0.6, "validation": 0.1}
    tiny = Split.parse("tiny:seed=2", declared)
    assert (tiny.kind, tiny.name) == ("few_shot", "tiny-seed2")
    assert (tiny.options["n"], tiny.options["seed"]) == (3, 2)
    assert tiny.base == Split.parse("per_user_temporal", declared)
    assert Split.parse("global_temporal").base is None
    # Characters that TFDS refuses in a config name, and dots, which separate its parts, are mended.
    assert Split.parse("held_out_items:fraction=0.1").name == "held_out_items-fraction0_1"


@pytest.mark.parametrize(
    ("text", "declared", "keyword"),
    [
        ("leave_one_oud", {}, "'leave_one_out'"),
        ("mine", {"mine": {"kind": "few_shots"}}, "'few_shot'"),
        ("few_shot:3", {}, "key=value"),
        ("few_shot:m=3", {}, "`m`"),
        ("leave_one_out:n=3", {}, "none"),
        ("few_shot:n=abc", {}, "`int`"),
        ("few_shot:n=2.5", {}, "`int`"),
        ("few_shot:seed=-1", {}, ">= 0"),
        ("held_out_items:fraction=x", {}, "`float`"),
        ("held_out_items:fraction=5", {}, "< 1"),
        ("by_group", {"by_group": {"seed": True}}, "`int`"),
        ("few_shot:of=2024", {}, "'2024'"),
        ("a", {"a": {"kind": "few_shot", "n": 1, "of": "a"}}, "derived"),
        ("mine", {"mine": {"kind": ["few_shot"]}}, "few_shot"),
        ("few_shot:history=some", {}, "history"),
        ("per_user_temporal:train=0.95", {}, "validation=0.1"),
    ],
)
def test_parse_errors(text: str, declared: dict, keyword: str) -> None:
    with pytest.raises(DataError, match=keyword):
        Split.parse(text, declared)


@pytest.mark.parametrize("seed", range(3))
def test_assignments_are_those_of_the_definitions(seed: int, write_shop) -> None:
    random = np.random.default_rng(seed)
    n = 300
    # Every (user, item, time) at most once, many at equal times.
    users, items, times = np.unravel_index(random.choice(6 * 12 * 40, n, False), (6, 12, 40))
    times = times.astype(float)
    events = list(zip(users.tolist(), items.tolist(), times.tolist(), [4.0] * n, strict=True))
    of_users = {"train": 0.4, "validation": 0.3, "seed": 2}
    dataset = Dataset.open(write_shop(events, splits={"by_user": of_users}))
    per_user = plain_split("per_user_temporal", users, times)
    by_user = splits.by_name([f"u{user}" for user in users], **of_users)
    held_out = splits.is_held_out([f"i{item}" for item in range(12)], fraction=0.3, seed=1)
    for split, expected in (
        ("per_user_temporal", per_user),
        (
            "per_user_temporal:train=0.6,validation=0.3",
            plain_split("per_user_temporal", users, times, 0.6, 0.3),
        ),
        ("leave_one_out", plain_split("leave_one_out", users, times)),
        ("global_temporal", plain_split("global_temporal", users, times)),
        ("global_temporal:train=0.5", plain_split("global_temporal", users, times, 0.5)),
        ("by_user", by_user),
        (
            "held_out_items:fraction=0.3,seed=1",
            np.where(held_out[items] & (per_user != TEST), EXCLUDED, per_user),
        ),
        ("few_shot:n=5", splits.few_shot(per_user, n=5, seed=0)),
        ("few_shot:n=5,of=by_user", splits.few_shot(by_user, n=5, seed=0)),
    ):
        found = assign(dataset, Split.parse(split, dataset.spec.splits))
        assert found.codes.dtype == np.int8
        assert found.codes.tolist() == expected.tolist(), split


def test_a_users_events_by_hand(write_shop) -> None:
    """Shares are exact decimals: in floats 0.7 + 0.1 is 0.7999999999999999, of ten events 7."""
    events = [(0, n, float(n // 3), 4.0) for n in range(10)]
    dataset = Dataset.open(write_shop(events))
    for split, expected in (
        ("per_user_temporal:train=0.7,validation=0.1", [TRAIN] * 7 + [VALIDATION] + [TEST] * 2),
        ("leave_one_out", [TRAIN] * 8 + [VALIDATION, TEST]),
        ("global_temporal:train=0.4,validation=0.3", [TRAIN] * 3 + [VALIDATION] * 3 + [TEST] * 4),
    ):
        assert assign(dataset, Split.parse(split)).codes.tolist() == expected


@pytest.mark.parametrize(
    ("value", "labelled", "twice"), [(4.0, True, True), (1.0, True, False), (1.0, False, True)]
)
def test_an_event_that_is_there_twice(value, labelled, twice, write_shop) -> None:
    log = [(0, 2, 5.0, 1.0), (1, 3, 9.0, 4.0), (1, 3, 8.0, 4.0), (0, 3, 9.0, 4.0)]
    log += [(1, 3, 9.0, value), (0, 1, 7.0, 4.0)]
    told = r"rows 1 and 4 of the events are the same event \(user 'u1', item 'i3', time and value"
    refused = pytest.raises(DataError, match=told) if twice else contextlib.nullcontext()
    dataset = Dataset.open(write_shop(log, labelled=labelled))
    with refused:
        assign(dataset, Split.parse("global_temporal:train=0.4,validation=0.2"))
