"""Batches: every row once an epoch, bit-equal resumption, any number of processes."""

import itertools

import gin
import numpy as np
import pytest
import seqio

from m6rec_jax.errors import CheckpointError, ConfigError, DataError, M6RecError
from m6rec_jax.pipeline import batches as batches_module
from m6rec_jax.pipeline.batches import BatchIterator, EvaluationBatches
from m6rec_jax.pipeline.features import MODEL_FEATURES, SEGMENT_FEATURES
from m6rec_jax.pipeline.source import PreparedSource

LENGTHS = {"inputs": 6, "targets": 3}


def make(name, **changes):
    return BatchIterator(name, LENGTHS, **{"batch_size": 8, "num_shards": 2, "seed": 3, **changes})


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def numbers(batches):
    return [int(n) for batch in batches for n in batch["user_ids"][:, 0]]


def shapes(batch):
    return {name: (values.shape, values.dtype) for name, values in batch.items()}


def expected_shapes(lengths, features):
    """Of 8 rows."""
    return {name: ((8, lengths.get(f.axis, 1)), f.dtype) for name, f in features.items()}


def test_packed_rows_know_the_task_of_each_position(number_tasks):
    """The numbers of one task are below 1,000, those of the other are not."""
    mixed = 0
    lengths = {"inputs": 12, "targets": 8}
    batches = BatchIterator(number_tasks[2], lengths, 8, num_shards=2, seed=3, pack=True)
    for batch in take(batches, 10):
        assert shapes(batch) == expected_shapes(lengths, MODEL_FEATURES | SEGMENT_FEATURES)
        for sources, segments, at, jobs in zip(
            batch["encoder_input_tokens"],
            batch["encoder_segment_ids"],
            batch["decoder_segment_ids"],
            batch["decoder_job_ids"],
            strict=True,
        ):
            firsts = [sources[segments == k][0] // 1000 for k in range(1, segments.max() + 1)]
            expected = [-1 if k == 0 else firsts[k - 1] for k in at.tolist()]
            assert jobs.tolist() == expected
            mixed += len(set(firsts)) > 1
    assert mixed


def test_an_epoch_holds_every_row_once(number_tasks):
    # One shard of 37 rows: the first 37 rows are the first epoch, the next 37 the second.
    rows = numbers(take(make(number_tasks[0], batch_size=1, num_shards=1), 74))
    assert sorted(rows[:37]) == sorted(rows[37:]) == list(range(37))
    assert rows[:37] != rows[37:]


def test_processes_share_an_epoch(number_tasks):
    """Each row of the epoch is read by one process, once; 37 rows make shards of 9, 9, 9 and 10."""
    sizes, read = (9, 9, 9, 10), []
    for p in range(2):
        own = make(number_tasks[0], batch_size=4, num_shards=4, process_index=p, process_count=2)
        batches = take(own, 10)
        for index, shard in enumerate(own.shards):
            read += [int(batch["user_ids"][index, 0]) for batch in batches[: sizes[shard]]]
    assert sorted(read) == list(range(37))


def test_seed_decides_everything(number_tasks):
    mixture = number_tasks[2]
    assert_equal(take(make(mixture), 6), take(make(mixture), 6))
    assert numbers(take(make(mixture), 6)) != numbers(take(make(mixture, seed=4), 6))


@pytest.mark.parametrize(("pack", "consumed"), [(False, 0), (True, 13)])
def test_resumes_bit_equal(number_tasks, pack, consumed):
    unbroken = make(number_tasks[2], pack=pack)
    take(unbroken, consumed)
    states = unbroken.state_dict()
    assert all(isinstance(state, bytes) for state in states.values())
    expected = take(unbroken, 15)
    resumed = make(number_tasks[2], pack=pack)
    resumed.load_state_dict(states)
    assert resumed.num_batches == consumed
    assert_equal(take(resumed, 15), expected)


REGISTERS = """
from pathlib import Path
import tensorflow as tf
from tests.pipeline.conftest import register

def failing(rows):
    def fail(number):
        if number == 36:
            raise ValueError("row 36 is bad")
        return number
    def checked(row):
        number = tf.numpy_function(fail, [row["number"]], tf.int64, stateful=False)
        return {"number": tf.ensure_shape(number, [])}
    return rows.map(checked)

register("apart", Path(FOLDER))
register("failing", Path(FOLDER), failing)
"""


def test_input_processes_change_no_batch_and_no_state(number_data, tmp_path, monkeypatch):
    (tmp_path / "tasks_apart.py").write_text(f"FOLDER = {str(number_data[0])!r}\n{REGISTERS}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with gin.unlock_config():
        gin.parse_config("import tasks_apart")
    three = {"batch_size": 9, "num_shards": 3}
    here = make("apart", **three)
    there = make("apart", **three, num_input_processes=2)
    try:
        assert_equal(take(there, 9), take(here, 9))
        states = there.state_dict()
        expected = take(here, 9)
        assert_equal(take(there, 9), expected)
        # Any number of processes goes on at a saved place.
        there.load_state_dict(states)
        assert_equal(take(there, 9), expected)
        with pytest.raises(CheckpointError, match=r"00002-of-00003 is damaged"):
            there.load_state_dict(states | {"shard-00002-of-00003": b"none"})
    finally:
        there.close()
    bad = make("failing", num_shards=4, num_input_processes=1)
    with pytest.raises(DataError, match="row 36 is bad"):
        take(bad, 20)
    (reader,) = bad._readers
    (process,) = reader._process._pool._processes.values()
    process.kill()
    with pytest.raises(M6RecError, match="died"):
        take(bad, 2)
    bad.close()


def test_resumes_on_another_number_of_processes(number_tasks):
    def processes(count):
        return [
            make(number_tasks[2], process_index=p, process_count=count, num_shards=4)
            for p in range(count)
        ]

    def global_batches(iterators, count):
        parts = zip(*(take(i, count) for i in iterators), strict=True)
        return [{k: np.concatenate([p[k] for p in part]) for k in part[0]} for part in parts]

    unbroken = global_batches(processes(1), 15)
    before = processes(4)
    assert_equal(global_batches(before, 7), unbroken[:7])
    states = {}
    for iterator in before:
        states |= iterator.state_dict()
    after = processes(2)
    for iterator in after:
        iterator.load_state_dict(states)
    assert_equal(global_batches(after, 8), unbroken[7:])


def test_mixture_follows_its_rates(number_tasks):
    rows = np.asarray(numbers(take(make(number_tasks[2]), 200)))
    assert (rows < 1000).mean() == pytest.approx(2 / 3, abs=0.05)
    # Shards draw on their own: a batch is not all of one task.
    assert len({int((b["user_ids"] < 1000).sum()) for b in take(make(number_tasks[2]), 30)}) > 3


def real_numbers(batches):
    return [n for b in batches for n in b["user_ids"][b["example_weights"] > 0, 0].tolist()]


def evaluation(name, split="train", processes=1, **options):
    """What each of the processes evaluates."""
    return [
        EvaluationBatches(
            name, LENGTHS, 6, split=split, process_index=p, process_count=processes, **options
        )
        for p in range(processes)
    ]


# Of 6 processes some have no row of the test part.
@pytest.mark.parametrize(
    ("split", "processes", "size"), [("validation", 1, 10), ("validation", 3, 10), ("test", 6, 3)]
)
def test_evaluation_sees_every_row_once_in_one_shape(number_tasks, split, processes, size):
    seen, lengths = [], set()
    for batches in evaluation(number_tasks[0], split, processes):
        for _ in range(2 if processes == 1 else 1):  # iterating again starts anew
            found = list(batches)
        lengths |= {len(found), len(batches)}
        seen += real_numbers(found)
        for batch in found:
            assert batch["encoder_input_tokens"].shape == (6 // processes, 6)
            padding = batch["example_weights"] == 0
            assert (batch["decoder_labels"][padding] == -1).all()
            assert (batch["encoder_block_ids"][padding] == 0).all()
    assert sorted(seen) == list(range(size))
    assert len(lengths) == 1


@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_of_a_mixture_sees_every_row_of_every_task(number_tasks, processes):
    """Also when one task is at its end long before the others."""
    found = [list(batches) for batches in evaluation(number_tasks[2], processes=processes)]
    seen = [number for batches in found for number in real_numbers(batches)]
    assert sorted(seen) == [*range(37), *range(1000, 1037)]
    assert len({*map(len, found)}) == 1
    (looked,) = evaluation(number_tasks[2], sample=6)
    (batch,) = list(looked)
    assert sorted(batch["user_ids"][:, 0] < 1000) == [False] * 3 + [True] * 3
    assert looked.num_rows == looked.read_rows == 6


def test_evaluation_of_a_mixture_where_one_task_lacks_the_part(number_tasks, monkeypatch):
    lacking = [seqio.TaskRegistry.get(number_tasks[1]).source]
    splits = property(lambda source: ("train",) if source in lacking else ("train", "test"))
    monkeypatch.setattr(PreparedSource, "splits", splits)
    (batches,) = evaluation(number_tasks[2], "test")
    assert sorted(real_numbers(batches)) == [0, 1, 2]
    lacking.append(seqio.TaskRegistry.get(number_tasks[0]).source)
    with pytest.raises(DataError, match="has no split 'test'"):
        evaluation(number_tasks[2], "test")


def test_a_sample_is_the_same_in_every_layout_and_at_every_pass(number_tasks):
    """Against rows picked by hand out of a pass over all of them."""

    def seen(sample, processes=1, passes=1):
        parts = evaluation(number_tasks[2], processes=processes, sample=sample)
        assert len({len(batches) for batches in parts}) == 1
        found = [[n for batches in parts for n in real_numbers(batches)] for _ in range(passes)]
        assert all(rows == found[0] for rows in found)
        assert parts[0].read_rows == len(found[0])
        return sorted(found[0])

    picked = [n for name in number_tasks[:2] for n in real_numbers(*evaluation(name))[:10]]
    assert seen(20, passes=2) == seen(20, processes=3) == sorted(picked)
    low, high = seen(1)
    assert low < 1000 <= high, "every task has a row"


def test_a_state_of_other_features(number_tasks, monkeypatch: pytest.MonkeyPatch):
    """A version of the package that makes other features says so, not tf.data."""
    states = make(number_tasks[0]).state_dict()
    more = {**batches_module.TASK_FEATURES, "another": None}
    monkeypatch.setattr(batches_module, "TASK_FEATURES", more)
    iterator = make(number_tasks[0])
    with pytest.raises(CheckpointError, match="the data state was saved with features = "):
        iterator.load_state_dict(states)


def test_clear_errors(number_tasks):
    task = number_tasks[0]
    for name, options, error, message in (
        ("movielens", {}, ConfigError, "no seqio task or mixture is called 'movielens'"),
        (task, {"batch_size": 5}, ConfigError, "BATCH_SIZE = 5 must be a positive multiple"),
        (task, {"process_count": 3}, ConfigError, "number of processes = 3"),
        (task, {"split": "test", "num_shards": 8}, DataError, "shard 0 of 8 .* no rows"),
        (task, {"split": "holdout"}, DataError, "no split 'holdout', only test, train, validation"),
    ):
        with pytest.raises(error, match=message):
            make(name, **options)
    states = make(task).state_dict()
    damaged = {**states, "shard-00000-of-00002": b"nonsense"}
    for options, saved, message in (
        ({"batch_size": 16}, states, "batch_size = 8, now it is 16"),
        ({"num_shards": 4}, states, "num_shards = 2, now it is 4"),
        ({}, damaged, "shard-00000-of-00002 is damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            make(task, **options).load_state_dict(saved)
