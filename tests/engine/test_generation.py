"""The verbs: text in, text out, whatever else is asked for in the same call."""

import jax
import numpy as np
import pytest

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.generation import Generator, generate
from m6rec_jax.engine.decoding.sampling import SamplingOptions
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.vocabulary import EOS_ID
from tests.engine.programs import num_traced
from tests.engine.teacher_forcing import text_log_probability
from tests.pipeline import shop_rows

S, T = 96, 24
HISTORIES = [row["history"] for row in shop_rows.rows_of("test")["groups"][:5]]
# Two titles belong to two and three items.
TITLES = [*shop_rows.ITEMS, shop_rows.ITEMS[0], shop_rows.ITEMS[4], shop_rows.ITEMS[4]]


@pytest.fixture(scope="module")
def generator(tiny):
    return Generator(*tiny, EngineOptions(S, T, batch_sizes=(4,)))


@pytest.fixture(scope="module")
def trie(shop_vocabulary):
    return TitleTrie(shop_vocabulary, TITLES)


def likelihood(tiny, history, text, before=""):
    return text_log_probability(tiny, history, text, (S, T), before)


def test_scores_are_the_likelihoods_of_training(tiny, generator, trie):
    for found, history in zip(generator.greedy(HISTORIES, trie=trie), HISTORIES, strict=True):
        assert found.ended
        assert found.text == trie.titles[found.entry]
        assert found.score == pytest.approx(likelihood(tiny, history, found.text), rel=1e-4)


def test_scores_of_beams_are_normalised_and_log_probabilities_are_not(tiny, generator, trie):
    found = generator.beam_search(HISTORIES[:2], num_beams=4, length_penalty=0.7, trie=trie)
    for history, beams in zip(HISTORIES[:2], found, strict=True):
        for beam in beams:
            expected = likelihood(tiny, history, beam.text)
            written = len(tiny[2].encode(beam.text)) + 1
            assert beam.log_probability == pytest.approx(expected, rel=1e-4)
            assert beam.score == pytest.approx(expected / ((5 + written) / 6) ** 0.7, rel=1e-4)
    (sampled,) = generator.sample(HISTORIES[:1], trie=trie, seed=3)
    assert sampled[0].log_probability == sampled[0].score


def test_recommendations_are_the_likeliest_titles(tiny, generator, trie):
    """With as many beams as titles, search equals scoring every title."""
    results = generator.recommend(HISTORIES[:2], trie, len(trie), num_beams=16)
    for history, found in zip(HISTORIES[:2], results, strict=True):
        scores = [likelihood(tiny, history, title) for title in trie.titles]
        order = np.argsort(scores)[::-1]
        assert [one.title for one in found] == [trie.titles[i] for i in order]
        np.testing.assert_allclose([one.score for one in found], np.array(scores)[order], rtol=1e-4)
        assert sorted(index for one in found for index in one.indices) == list(range(len(TITLES)))
        shared = {one.title: one.indices for one in found if len(one.indices) > 1}
        assert shared == {TITLES[0]: [0, 12], TITLES[4]: [4, 13, 14]}
    first = generator.recommend(HISTORIES[:2], trie, 3, num_beams=16)
    assert first[0] == results[0][:3]


@pytest.mark.parametrize("num_beams", [3, 16])
def test_seen_items_are_never_recommended(tiny, generator, trie, num_beams):
    """Though the likeliest titles are seen, three beams are enough to find the next ones."""
    everything = generator.recommend(HISTORIES[:3], trie, len(trie), num_beams=16)
    seen = [
        [index for one in everything[0][:7] for index in one.indices],
        [4, 13],  # one item of this title is left
        [index for one in everything[2][:-2] for index in one.indices],
    ]
    found = generator.recommend(HISTORIES[:3], trie, 3, num_beams=num_beams, seen=seen)
    for own, known, whole in zip(found, seen, everything, strict=True):
        left = [one for one in whole if set(one.indices) - set(known)]
        assert not {index for one in own for index in one.indices} & set(known)
        if num_beams == 16:
            assert [one.title for one in own] == [one.title for one in left[:3]]
            np.testing.assert_allclose(
                [one.score for one in own], [one.score for one in left[:3]], rtol=1e-4
            )
    assert [len(row) for row in found] == [3, 3, 2]
    shared = generator.recommend(HISTORIES[1:2], trie, 12, num_beams=16, seen=[[4, 13]])[0]
    assert {one.title: one.indices for one in shared}[TITLES[4]] == [14]
    nothing = [list(range(len(TITLES))), []]
    assert [len(row) for row in generator.recommend(HISTORIES[:2], trie, 2, seen=nothing)] == [0, 2]


@pytest.mark.parametrize("seen", [None, [[0, 3], [12]]])
def test_texts_before_titles_of_the_trie(tiny, generator, trie, seen):
    """They are given to the model as they are; titles are as likely as after them in training."""
    prefixes = ["horror. title:", "likes"]
    given = [len(tiny[2].encode(text)) for text in prefixes]
    assert given[0] != given[1]
    found = generator.recommend(HISTORIES[:2], trie, 12, prefixes, num_beams=16, seen=seen)
    for request, (history, titles) in enumerate(zip(HISTORIES[:2], found, strict=True)):
        out = set() if seen is None else set(seen[request])
        left = [t for t in range(len(trie)) if set(trie.indices(t)) - out]
        assert len(titles) == len(left) < 13
        scores = {
            trie.titles[t]: likelihood(tiny, history, trie.titles[t], before=prefixes[request])
            for t in left
        }
        assert [one.title for one in titles] == sorted(scores, key=lambda t: -scores[t])
        np.testing.assert_allclose(
            [one.score for one in titles], [scores[one.title] for one in titles], rtol=1e-4
        )


def test_programs_to_export_have_no_sort(tiny, trie):
    model, variables, _ = tiny
    features = {
        "encoder_input_tokens": np.ones((2, 8), np.int32),
        "encoder_block_ids": np.ones((2, 8), np.int32),
        "task_ids": np.zeros((2, 1), np.int32),
        "prefix_ids": np.zeros((2, 6), np.int32),
        "seeds": np.zeros((2, 1), np.uint32),
    }

    def primitives(verb, num_texts, options):
        features_on_device = jax.tree.map(jax.numpy.asarray, features)
        program = jax.make_jaxpr(lambda *args: generate(model, verb, num_texts, *args))(
            variables, features_on_device, Automaton(None, trie.graphs), options
        )
        return {name for name in ("top_k", "sort") if f" {name}[" in str(program)}

    assert primitives("beam_search", 4, 0.6) == set()
    assert primitives("sample", 12, SamplingOptions(1.0, 3, 0.9)) == set()
    assert primitives("beam_search", 12, 0.6) == {"top_k"}  # 12 beams are not few


def test_control_ids_are_never_written(tiny, shop_vocabulary):
    seen = []

    class Spy(type(shop_vocabulary)):
        def decode(self, ids):
            seen.append(np.asarray(ids))
            return super().decode(ids)

    spy = Spy(shop_vocabulary.model_file)
    generator = Generator(tiny[0], tiny[1], spy, EngineOptions(S, T, batch_sizes=(1,)))
    generator.sample(HISTORIES[:1], num_samples=300, temperature=10.0)
    tokens = np.concatenate(seen)
    written = set(tokens[tokens > 0].tolist())
    assert written <= {*spy.text_ids.tolist(), EOS_ID}
    assert len(written) > 0.9 * len(spy.text_ids)


def test_prefixes_begin_the_text_and_do_not_count(tiny, generator, trie):
    prefix = "likes"
    found = generator.greedy(HISTORIES[:2], ["", prefix], trie=trie)
    assert found[0].entry == generator.greedy(HISTORIES[:1], trie=trie)[0].entry
    assert found[1].text.startswith(prefix)
    title = trie.titles[found[1].entry]
    assert found[1].continuation == title
    expected = likelihood(tiny, HISTORIES[1], title, before=prefix)
    assert found[1].score == pytest.approx(expected, rel=1e-4)
    for beams in generator.beam_search(HISTORIES[:2], [prefix, prefix], num_beams=3):
        assert len(beams) == 3
        assert all(beam.text.startswith(prefix) for beam in beams)


def test_the_same_request_gives_the_same_text_whatever_stands_beside_it(generator):
    settings = {"num_samples": 3, "top_p": 0.95}
    together = generator.sample(HISTORIES, seed=[7, 8, 7, 9, 10], **settings)
    for i, seed in enumerate([7, 8, 7, 9, 10]):
        alone = generator.sample([HISTORIES[i]], seed=seed, **settings)[0]
        assert [text.text for text in alone] == [text.text for text in together[i]]
    assert len({text.text for text in together[0]}) == 3
    again = generator.sample(HISTORIES[:1], seed=8, **settings)[0]
    assert [text.text for text in again] != [text.text for text in together[0]]
    likeliest = generator.sample(HISTORIES, temperature=0.0)
    greedy = generator.greedy(HISTORIES)
    assert [row[0].text for row in likeliest] == [text.text for text in greedy]


def test_further_requests_compile_nothing(tiny, trie):
    generator = Generator(*tiny, EngineOptions(S, T, batch_sizes=(2,), source_buckets=(S,)))
    generator.sample(HISTORIES[:1], temperature=2.0, top_k=3, top_p=0.5, seed=3)
    generator.beam_search(HISTORIES[:1])
    generator.recommend(HISTORIES[:1], trie, 4)
    generator.greedy(HISTORIES[:1])
    traced = num_traced()
    for number, history in enumerate(HISTORIES):
        generator.sample([history], temperature=0.5 + number, top_k=number, top_p=0.9, seed=number)
    for number in range(1, 5):
        generator.beam_search(HISTORIES[:number], length_penalty=0.1 * number)
        generator.recommend(HISTORIES[:number], trie, 4)
    generator.greedy(HISTORIES, ["liked"] * 5)
    generator.greedy(HISTORIES[:3])
    assert num_traced() == traced


def test_clear_errors(tiny, generator, trie, shop_vocabulary):
    with pytest.raises(ConfigError, match="target_length = 2 has no room"):
        Generator(*tiny, EngineOptions(S, 2))
    with pytest.raises(ConfigError, match="temperature = -1"):
        generator.sample(HISTORIES, temperature=-1)
    with pytest.raises(ConfigError, match=r"length_penalty = -0\.5"):
        generator.beam_search(HISTORIES, length_penalty=-0.5)
    with pytest.raises(ConfigError, match=r"TitleTrie\(max_tokens=23\) cuts it"):
        generator.greedy(HISTORIES, trie=TitleTrie(shop_vocabulary, ["Film A, " * 20]))
    with pytest.raises(DataError, match="1 seeds for 5 requests"):
        generator.sample(HISTORIES, seed=[1])
    with pytest.raises(DataError, match="1 prefixes for 5 histories"):
        generator.greedy(HISTORIES, ["x"])
    with pytest.raises(DataError, match=r"prefix 0 has \d+ tokens and leaves no room in 23"):
        generator.greedy(HISTORIES[:1], ["Film A, comedy, " * 8])
    with pytest.raises(DataError, match="1 lists of seen items for 2 histories"):
        generator.recommend(HISTORIES[:2], trie, 1, seen=[[0]])
    with pytest.raises(DataError, match="a seen item is outside the catalogue of 15 items"):
        generator.recommend(HISTORIES[:1], trie, 1, seen=[[15]])
    with pytest.raises(ConfigError, match="of a trie only"):
        generator.beam_search(HISTORIES[:1], seen=[[0]])
    with pytest.raises(DataError, match=r"prefix 0 has \d+ .* for the longest title, of \d+: 'Fil"):
        generator.recommend(HISTORIES[:1], trie, 1, ["Film A, comedy, " * 7])
