"""The verbs: text in, text out, whatever else is asked for in the same call."""

import jax
import numpy as np
import pytest

from m6rec_jax.engine.decoding.generation import Generator, TextRequest, generate
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


REQUESTS = [TextRequest(history) for history in HISTORIES]


def seeing(seen, requests=REQUESTS):
    return [r._replace(seen=own) for r, own in zip(requests, seen, strict=False)]


def sampled(requests=REQUESTS, **options):
    return [request._replace(sampling=SamplingOptions(**options)) for request in requests]


@pytest.fixture(scope="module")
def generator(tiny):
    return Generator(*tiny, EngineOptions(S, T, batch_sizes=(4,)))


@pytest.fixture(scope="module")
def trie(shop_vocabulary):
    return TitleTrie(shop_vocabulary, TITLES)


def likelihood(tiny, history, text, before=""):
    return text_log_probability(tiny, history, text, (S, T), before)


def test_beams_are_ordered_by_normalised_scores_and_log_probabilities_are_not(
    tiny, generator, trie
):
    found = generator.beam_search(REQUESTS[:2], num_beams=4, length_penalty=0.7, trie=trie)
    for history, beams in zip(HISTORIES[:2], found, strict=True):
        scores = []
        for beam in beams:
            expected = likelihood(tiny, history, beam.text)
            written = len(tiny[2].encode(beam.text)) + 1
            assert beam.log_probability == pytest.approx(expected, rel=1e-4)
            scores.append(expected / ((5 + written) / 6) ** 0.7)
        assert scores == sorted(scores, reverse=True)


def test_recommendations_are_the_likeliest_titles(tiny, generator, trie):
    """With as many beams as titles, search equals scoring every title."""
    results = generator.recommend(REQUESTS[:2], trie, len(trie), num_beams=16)
    for history, found in zip(HISTORIES[:2], results, strict=True):
        scores = [likelihood(tiny, history, title) for title in trie.titles]
        order = np.argsort(scores)[::-1]
        assert [one.title for one in found] == [trie.titles[i] for i in order]
        np.testing.assert_allclose([one.score for one in found], np.array(scores)[order], rtol=1e-4)
        assert sorted(index for one in found for index in one.indices) == list(range(len(TITLES)))
        shared = {one.title: one.indices for one in found if len(one.indices) > 1}
        assert shared == {TITLES[0]: [0, 12], TITLES[4]: [4, 13, 14]}
    first = generator.recommend(REQUESTS[:2], trie, 3, num_beams=16)
    assert first[0] == results[0][:3]


@pytest.mark.parametrize("num_beams", [3, 16])
def test_seen_items_are_never_recommended(tiny, generator, trie, num_beams):
    """Though the likeliest titles are seen, three beams are enough to find the next ones."""
    everything = generator.recommend(REQUESTS[:3], trie, len(trie), num_beams=16)
    seen = [
        [index for one in everything[0][:7] for index in one.indices],
        [4, 13],  # one item of this title is left
        [index for one in everything[2][:-2] for index in one.indices],
    ]
    found = generator.recommend(seeing(seen), trie, 3, num_beams=num_beams)
    for own, known, whole in zip(found, seen, everything, strict=True):
        left = [one for one in whole if set(one.indices) - set(known)]
        assert not {index for one in own for index in one.indices} & set(known)
        if num_beams == 16:
            assert [one.title for one in own] == [one.title for one in left[:3]]
            np.testing.assert_allclose(
                [one.score for one in own], [one.score for one in left[:3]], rtol=1e-4
            )
    assert [len(row) for row in found] == [3, 3, 2]
    shared = generator.recommend(seeing([[4, 13]], REQUESTS[1:]), trie, 12, num_beams=16)[0]
    assert {one.title: one.indices for one in shared}[TITLES[4]] == [14]
    nothing = [list(range(len(TITLES))), []]
    assert [len(row) for row in generator.recommend(seeing(nothing), trie, 2)] == [0, 2]


@pytest.mark.parametrize("seen", [None, [[0, 3], [12]]])
def test_texts_before_titles_of_the_trie(tiny, generator, trie, seen):
    """They are given to the model as they are; titles are as likely as after them in training."""
    prefixes = ["horror. title:", "likes"]
    given = [len(tiny[2].encode(text)) for text in prefixes]
    assert given[0] != given[1]
    requests = [r._replace(prefix=p) for r, p in zip(REQUESTS, prefixes, strict=False)]
    if seen is not None:
        requests = seeing(seen, requests)
    found = generator.recommend(requests, trie, 12, num_beams=16)
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
        "seed": np.zeros(2, np.uint32),
        "temperature": np.ones(2, np.float32),
        "top_p": np.full(2, 0.9, np.float32),
    }

    def primitives(verb, num_texts, penalty=None):
        features_on_device = jax.tree.map(jax.numpy.asarray, features)
        program = jax.make_jaxpr(lambda *args: generate(model, verb, num_texts, *args))(
            variables, features_on_device, trie.automaton, penalty
        )
        return {name for name in ("top_k", "sort") if f" {name}[" in str(program)}

    assert primitives("beam_search", 4, 0.6) == set()
    assert primitives("sample", 1) == set()
    assert primitives("beam_search", 12, 0.6) == {"top_k"}  # 12 beams are not few


def test_control_ids_are_never_written(tiny, shop_vocabulary):
    seen = []

    class Spy(type(shop_vocabulary)):
        def decode(self, ids):
            seen.append(np.asarray(ids))
            return super().decode(ids)

    spy = Spy(shop_vocabulary.model_file)
    generator = Generator(tiny[0], tiny[1], spy, EngineOptions(S, T, batch_sizes=(32,)))
    many = [REQUESTS[0]._replace(seed=seed) for seed in range(300)]
    generator.write(sampled(many, temperature=10.0))
    tokens = np.concatenate(seen)
    written = set(tokens[tokens > 0].tolist())
    assert written <= {*spy.text_ids.tolist(), EOS_ID}
    assert len(written) > 0.9 * len(spy.text_ids)


def test_prefixes_begin_the_text_and_do_not_count(tiny, generator, trie):
    prefix = "likes"
    prefixed = [request._replace(prefix=prefix) for request in REQUESTS[:2]]
    found = generator.write([REQUESTS[0], prefixed[1]], trie=trie)
    assert found[0].entry == generator.write(REQUESTS[:1], trie=trie)[0].entry
    title = trie.titles[found[1].entry]
    assert found[1].text == title
    expected = likelihood(tiny, HISTORIES[1], title, before=prefix)
    assert found[1].log_probability == pytest.approx(expected, rel=1e-4)
    for beams in generator.beam_search(prefixed, num_beams=3):
        assert len(beams) == 3
        given = tuple(tiny[2].encode(prefix))
        assert all(beam.tokens[: len(given)] == given for beam in beams)


def test_the_same_request_gives_the_same_text_whatever_stands_beside_it(generator):
    seeds = [7, 8, 7, 9, 10]
    requests = [r._replace(seed=seed) for r, seed in zip(REQUESTS, seeds, strict=True)]
    requests = sampled(requests, top_p=0.95)
    together = generator.write([*requests, REQUESTS[0]])
    assert [generator.write([one])[0].text for one in requests] == [t.text for t in together[:5]]
    assert together[5].text == generator.write(REQUESTS[:1])[0].text  # greedily beside them
    assert generator.write([requests[0]._replace(seed=8)])[0].text != together[0].text


def test_further_requests_compile_nothing(tiny, trie):
    generator = Generator(*tiny, EngineOptions(S, T, batch_sizes=(2,), source_buckets=(S,)))
    generator.write(sampled(REQUESTS[:1], temperature=2.0, top_p=0.5))
    generator.beam_search(REQUESTS[:1])
    generator.recommend(REQUESTS[:1], trie, 4)
    generator.write(REQUESTS[:1])
    traced = num_traced()
    for number, request in enumerate(REQUESTS):
        generator.write(sampled([request], temperature=0.5 + number, top_p=0.9))
    for number in range(1, 5):
        generator.beam_search(REQUESTS[:number], length_penalty=0.1 * number)
        generator.recommend(REQUESTS[:number], trie, 4)
    generator.write([request._replace(prefix="liked") for request in REQUESTS])
    generator.recommend([request._replace(prefix="likes") for request in REQUESTS], trie, 4)
    assert num_traced() == traced


def test_long_titles_are_cut_and_may_then_be_shared(shop_vocabulary):
    titles = ["Film A, comedy", "Film A, comedy drama", "Film B"]
    length = len(shop_vocabulary.encode(titles[0])) + 1
    cut = TitleTrie(shop_vocabulary, titles, max_tokens=length)
    assert cut.length == length
    assert sorted(cut.indices(entry) for entry in range(len(cut))) == [[0, 1], [2]]


def test_clear_errors(generator, shop_vocabulary):
    with pytest.raises(DataError, match="item 1 has no title to generate: ' '"):
        TitleTrie(shop_vocabulary, ["Film A", " "])
    with pytest.raises(ConfigError, match="temperature = -1"):
        generator.write(sampled(temperature=-1))
    with pytest.raises(DataError, match="no room"):
        generator.write(REQUESTS, trie=TitleTrie(shop_vocabulary, ["Film A, " * 20]))
    with pytest.raises(DataError, match="no room"):
        generator.write([TextRequest(HISTORIES[0], "Film A, comedy, " * 8)])
