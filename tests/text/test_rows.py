import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.infilling import text_infilling_row
from m6rec_jax.text.layout import FEATURES, Row, fit_to_budget
from m6rec_jax.text.rows import (
    drop_words,
    generation_row,
    packed_candidates,
    rows_of_texts,
    source_row,
)
from m6rec_jax.text.vocabulary import Vocabulary

PROFILE = "24 year old writer"
BEHAVIOURS = ["liked Fargo (1996)", "loved Star Wars (1977), sci-fi", "disliked Fargo (1996)"]
CONTEXT = "18 year old"

texts = st.text(st.sampled_from("Fargo 19 (),x<extra_id_0></s>"), max_size=30)
visible = texts.filter(lambda text: bool(text.strip()))


def check(row: Row) -> None:
    for name, values in row.items():
        assert values.dtype == FEATURES[name].dtype, name
        assert values.ndim == 1, name


def naive_target(vocab: Vocabulary, candidates: list[list[int]]) -> dict[str, list[float]]:
    """The decoder's layout, spelled out token by token."""
    row: dict[str, list[float]] = {"input": [], "target": [], "weight": [], "block": []}
    for block, words in enumerate(candidates, start=1):
        row["input"] += [vocab.bos_id, *words, vocab.eos_id]
        row["target"] += [*words, vocab.eos_id, vocab.pad_id]
        row["weight"] += [1] * (len(words) + 1) + [0]
        row["block"] += [block] * (len(words) + 2)
    return row


def test_exact_source_tokens(vocab: Vocabulary) -> None:
    segments = [PROFILE, *BEHAVIOURS, CONTEXT]
    row = source_row(vocab, segments, 64)
    check(row)
    p, b1, b2, b3, c = map(vocab.encode, segments)
    assert row["encoder_input_tokens"].tolist() == [
        vocab.source_bos_id, *p, *b1, *b2, *b3, *c, vocab.source_eos_id
    ]  # fmt: skip
    assert row["encoder_block_ids"].tolist() == (
        [1] * (1 + len(p)) + [2] * len(b1) + [3] * len(b2) + [4] * len(b3) + [5] * len(c) + [6]
    )
    assert row["num_dropped"].tolist() == [0]
    assert vocab.pieces(row["encoder_input_tokens"])[:4] == [
        "[BOS']", "\u258124", "\u2581year\u2581old\u2581writer", "\u2581liked"
    ]  # fmt: skip


@given(st.lists(texts, max_size=8), st.integers(3, 60))
def test_source_promises(vocab: Vocabulary, segments: list[str], source_length: int) -> None:
    row = source_row(vocab, segments, source_length)
    tokens, blocks = row["encoder_input_tokens"], row["encoder_block_ids"]
    assert len(tokens) == len(blocks) <= source_length
    assert tokens[0] == vocab.source_bos_id
    assert tokens[-1] == vocab.source_eos_id
    assert not {vocab.source_bos_id, vocab.source_eos_id} & set(tokens[1:-1].tolist())
    assert sorted(set(blocks.tolist())) == list(range(1, blocks.max() + 1))
    assert (np.diff(blocks) >= 0).all()
    assert (blocks == blocks.max()).sum() == 1
    dropped = int(row["num_dropped"][0])
    assert (dropped > 0) <= (len(segments) > 3)
    # Every block but the first and the last two kept ones is a whole segment.
    whole = {tuple(vocab.encode(segment)) for segment in segments}
    for block in range(2, blocks.max() - 2):
        assert tuple(tokens[blocks == block].tolist()) in whole


@given(st.lists(visible, min_size=1, max_size=6), st.integers(3, 12))
def test_candidate_promises(vocab: Vocabulary, candidates: list[str], share: int) -> None:
    number = len(candidates)
    row = packed_candidates(vocab, candidates, share * number, item_ids=range(number))
    words = [vocab.encode(text) for text in candidates]
    expected = naive_target(vocab, [ids[: share - 2] for ids in words])
    assert row["decoder_input_tokens"].tolist() == expected["input"]
    assert row["decoder_target_tokens"].tolist() == expected["target"]
    assert row["decoder_loss_weights"].tolist() == expected["weight"]
    assert row["decoder_block_ids"].tolist() == expected["block"]
    assert row["num_truncated"][0] == sum(len(ids) > share - 2 for ids in words)
    at_eos = row["decoder_input_tokens"] == vocab.eos_id
    assert row["decoder_item_ids"][at_eos].tolist() == list(range(len(candidates)))
    assert (row["decoder_item_ids"][~at_eos] == -1).all()
    assert (row["decoder_labels"] == -1).all()


@given(st.lists(st.integers(3, 20), max_size=12), st.integers(20, 40))
def test_rows_of_texts_are_full_and_whole(lengths: list[int], room: int) -> None:
    parts = rows_of_texts(lengths, room)
    assert [length for part in parts for length in lengths[part]] == lengths
    sums = [sum(lengths[part]) for part in parts]
    assert max(sums) <= room
    for number, part in enumerate(parts[1:]):
        assert sums[number] + lengths[part][0] > room, "it would have fitted into the row before"


TWO = ["Fargo"] * 2
LONG = ["loved Star Wars, sci-fi, 12 days"] * 3


@pytest.mark.parametrize(
    ("make", "arguments", "options", "error", "message"),
    [
        (source_row, ([PROFILE], 2), {}, ConfigError, "source_length 2 has no room"),
        (packed_candidates, ([], 16), {}, DataError, "at least one candidate"),
        (packed_candidates, (["Fargo", " "], 16), {}, DataError, "candidate 1 has no text .*' '"),
        (packed_candidates, (TWO * 4, 16), {}, ConfigError, "8 candidates of 2 tokens do not fit"),
        (packed_candidates, (LONG, 16), {"candidate_length": 9}, ConfigError, "3 texts take"),
        (packed_candidates, (TWO, 16), {"labels": [1, 0, 1]}, DataError, "3 labels for 2"),
        (packed_candidates, (TWO, 16), {"item_ids": [1]}, DataError, "1 item_ids for 2"),
        (generation_row, ([], "", 16, 16), {}, DataError, "no text"),
        (
            text_infilling_row,
            ([np.array([], np.int32)] * 2, 16, 16, np.random.default_rng(0)),
            *({}, DataError, "no text to mask"),
        ),
    ],
)
def test_broken_rows(vocab, make, arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        make(vocab, *arguments, **options)


def restored(vocab: Vocabulary, row: Row) -> list[int]:
    """Puts the target's spans back where their sentinels stand in the source."""
    spans: dict[int, list[int]] = {}
    sentinel = -1
    for token in row["decoder_target_tokens"].tolist()[:-2]:
        if token in vocab.sentinel_ids:
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    assert list(spans) == list(vocab.sentinel_ids[: len(spans)])
    assert all(spans.values())
    text: list[int] = []
    for token in row["encoder_input_tokens"].tolist()[1:-1]:
        text += spans.pop(token) if token in spans else [token]
    assert not spans
    return text


@given(
    st.lists(st.lists(st.integers(3, 300), max_size=12), min_size=1, max_size=8).filter(any),
    st.integers(3, 60),
    st.integers(4, 60),
    st.integers(0, 1000),
)
def test_infilling_restores_the_text(vocab, segments, source_length, target_length, seed) -> None:
    arrays = [np.array(segment, np.int32) for segment in segments]
    rng = np.random.default_rng(seed)
    row = text_infilling_row(vocab, arrays, source_length, target_length, rng)
    check(row)
    blocks = row["encoder_block_ids"]
    assert len(row["encoder_input_tokens"]) == len(blocks) <= source_length
    assert len(row["decoder_input_tokens"]) <= target_length
    assert sorted(set(blocks.tolist())) == list(range(1, blocks.max() + 1))
    text = restored(vocab, row)
    joined = [token for segment in segments for token in segment]
    if len(joined) + 2 + len(vocab.sentinel_ids) <= min(source_length, target_length):
        assert text == joined
    if len(segments) == 1:
        assert any(text == joined[i : i + len(text)] for i in range(len(joined)))
    expected = naive_target(vocab, [row["decoder_target_tokens"].tolist()[:-2]])
    assert row["decoder_input_tokens"].tolist() == expected["input"]
    assert row["decoder_loss_weights"].tolist() == expected["weight"]


def test_only_what_follows_the_prefix_counts(vocab: Vocabulary) -> None:
    row = generation_row(vocab, [PROFILE], "Fargo (1996)", 16, 16, prefix="liked", text_index=7)
    check(row)
    given, words = vocab.encode("liked"), vocab.encode("Fargo (1996)")
    assert row["encoder_input_tokens"][1:-1].tolist() == vocab.encode(PROFILE)
    assert row["decoder_input_tokens"].tolist() == [0, *given, *words, 1]
    assert row["decoder_target_tokens"].tolist() == [*given, *words, 1, 0]
    weights = [0] * len(given) + [1] * (len(words) + 1) + [0]
    assert row["decoder_loss_weights"].tolist() == weights
    assert row["decoder_item_ids"].tolist() == [-1] * (len(weights) - 1) + [7]
    assert row["num_truncated"].tolist() == [0]


@pytest.mark.parametrize("prefix", ["", "liked"])
def test_a_cut_text_is_not_taught_to_end(vocab: Vocabulary, prefix: str) -> None:
    given, words = vocab.encode(prefix), vocab.encode("Fargo (1996) disliked")
    assert len(words) > 1
    row = generation_row(vocab, [], "Fargo (1996) disliked", 16, len(given) + 3, prefix=prefix)
    assert row["decoder_target_tokens"].tolist() == [*given, words[0], 1, 0]
    assert row["decoder_loss_weights"].tolist() == [0] * len(given) + [1, 0, 0]
    assert row["num_truncated"].tolist() == [1]
    with pytest.raises(ConfigError, match="leaves no room"):
        generation_row(vocab, [], "Fargo", 16, len(given) + 2, prefix=prefix)


@given(st.lists(st.integers(0, 8), max_size=12), st.integers(0, 40), st.integers(0, 3))
def test_budget_promises(lengths: list[int], budget: int, last: int) -> None:
    segments = [[place] * length for place, length in enumerate(lengths)]
    kept, num_dropped = fit_to_budget(segments, budget, last)
    assert sum(map(len, kept)) <= budget
    assert len(kept) + num_dropped == len(segments)
    start = min(1, len(segments))
    survivors = segments[:start] + segments[start + num_dropped :]
    protected = min(len(segments), 1 + last)
    assert len(kept) >= protected
    cut = [len(a) - len(b) for a, b in zip(survivors, kept, strict=True)]
    assert all(a[: len(b)] == b for a, b in zip(survivors, kept, strict=True))
    if any(cut):
        # Only when nothing but protected segments is left, and not a token more than needed.
        assert len(kept) == protected
        assert sum(map(len, kept)) == budget
        longest = max(map(len, kept))
        assert all(len(b) >= longest - 1 for b, c in zip(kept, cut, strict=True) if c)
    elif num_dropped:
        one_more = len(segments[start + num_dropped - 1]) + sum(map(len, kept))
        assert one_more > budget


@given(st.text(), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_words_that_are_left_are_of_the_text(text: str, share: float, seed: int) -> None:
    left = drop_words(text, share, np.random.default_rng(seed))
    rest = iter(text.split())
    assert all(word in rest for word in left.split())
    assert bool(left.split()) == bool(text.split())
