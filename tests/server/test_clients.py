"""Other services' own clients, over a socket."""

import base64
import json
import urllib.request
from typing import Any

import cohere
import numpy as np
import openai
import pytest

from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.engine.decoding.text_decoding import Decoding, TextOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.serving.service import Service

PROFILE = "user, likes comedy\nliked Film A, drama, 2 days ago"
DOCUMENTS = ["Film B, drama", "Film C, horror", "Film D, comedy"]


@pytest.fixture(scope="module")
def ai(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def retriever(service: Service) -> Retriever:
    return service.retriever()


def scores(service: Service, documents: list[str], task: str = "ctr") -> np.ndarray:
    scorer = service.scorer()
    return scorer.score_requests([PROFILE.splitlines()], [documents], [task])[0]


def test_cohere_reranks(address: str, service: Service) -> None:
    expected = scores(service, DOCUMENTS)
    order = np.argsort(-expected).tolist()
    for client in (
        cohere.ClientV2("none", base_url=address),
        cohere.Client("none", base_url=address),
    ):
        found = client.rerank(model="ctr", query=PROFILE, documents=DOCUMENTS, top_n=2)
        assert [result.index for result in found.results] == order[:2]
        for result in found.results:
            assert result.relevance_score == pytest.approx(expected[result.index], abs=2e-6)
    # Objects: items of the catalogue, their columns, and texts.
    objects: list[Any] = [{"id": "f3"}, {"title": "Film C", "genre": "horror"}, {"text": "Film X"}]
    found = cohere.Client("none", base_url=address).rerank(
        model="ctr", query=PROFILE, documents=objects, return_documents=True
    )
    items = service.data("ctr").items
    rendered, _ = items["f3"], None
    row = {"time": 2e6, "history": [], "candidates": objects[:2]}
    handler = service.handler("ctr", "scoring")
    texts = handler.renderer.candidates(handler.parser.parse(row))
    assert texts[0].startswith(str(rendered.attributes["title"]))
    expected = scores(service, [*texts, "Film X"])
    for result in found.results:
        assert result.relevance_score == pytest.approx(expected[result.index], abs=2e-6)
    documents = {result.index: result.document for result in found.results}
    assert documents[2] is not None
    assert documents[2].text == "Film X"
    with pytest.raises(cohere.NotFoundError, match="unknown_task"):
        cohere.Client("none", base_url=address).rerank(model="x", query="a", documents=["b"])


def test_jina_reranks(address: str, service: Service) -> None:
    """As api.jina.ai documents it; a query may also be who is asked about."""
    query = {"user": {"taste": "comedy"}, "history": [], "time": 2_000_000}
    for asked in (PROFILE, query):
        body = {"model": "m6rec", "query": asked, "documents": DOCUMENTS, "return_documents": True}
        body |= {"model": "ctr", "top_n": 3}
        headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
        request = urllib.request.Request(f"{address}/v1/rerank", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            found = json.load(response)
        assert found["model"] == "ctr"
        assert found["usage"]["total_tokens"] > 0
        by_score = [result["relevance_score"] for result in found["results"]]
        assert by_score == sorted(by_score, reverse=True)
        for result in found["results"]:
            assert result["document"] == {"text": DOCUMENTS[result["index"]]}


def test_openai_lists_models(ai: openai.OpenAI) -> None:
    names = {model.id for model in ai.models.list()}
    assert {"m6rec", "ctr", "next", "next:items", "titles", "talk_replies"} <= names
    assert ai.models.retrieve("ctr").owned_by == "m6rec"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt")


def test_openai_embeds_users_and_items(ai: openai.OpenAI, retriever: Retriever) -> None:
    users = ai.embeddings.create(model="next", input=[PROFILE, "user, likes drama"])
    expected = retriever.embed_users(
        [PROFILE.splitlines(), ["user, likes drama"]], ["next", "next"]
    )
    # The client asks for base64, and decodes it.
    np.testing.assert_allclose([one.embedding for one in users.data], expected, atol=2e-6)
    items = ai.embeddings.create(model="next:items", input=DOCUMENTS, encoding_format="float")
    expected = retriever.embed_items(DOCUMENTS, "next")
    np.testing.assert_allclose([one.embedding for one in items.data], expected, atol=2e-6)
    raw = ai.embeddings.with_raw_response.create(
        model="next", input=PROFILE, encoding_format="base64"
    )
    text = json.loads(raw.text)["data"][0]["embedding"]
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(text), "<f4"), users.data[0].embedding, atol=2e-6
    )
    with pytest.raises(openai.ConflictError, match="vectors have 16 numbers"):
        ai.embeddings.create(model="next", input="a", dimensions=8)


def test_openai_completes(ai: openai.OpenAI, service: Service) -> None:
    generator = service.generator("contents")
    histories = [PROFILE.splitlines(), ["user, likes drama"]]
    expected = [
        text.text
        for text in generator.write([TextRequest(own, "film", "contents") for own in histories])
    ]
    prompts = [PROFILE, "user, likes drama"]
    found = ai.completions.create(model="contents", prompt=prompts)
    assert [choice.text for choice in found.choices] == expected
    assert found.usage is not None
    assert found.usage.completion_tokens > 0
    pieces = [
        piece.choices[0]
        for piece in ai.completions.create(model="contents", prompt=PROFILE, stream=True)
    ]
    assert "".join(piece.text for piece in pieces) == expected[0]
    assert sum(bool(piece.text) for piece in pieces) > 2
    assert pieces[-1].finish_reason == found.choices[0].finish_reason
    short = ai.completions.create(model="contents", prompt=PROFILE, max_tokens=2)
    assert len(short.choices[0].text) < len(expected[0])
    assert short.choices[0].finish_reason == "length"
    about = ai.completions.create(
        model="titles", prompt=PROFILE, extra_body={"item": {"genre": "horror"}}
    )
    prefixed = generator.write([TextRequest(PROFILE.splitlines(), "horror:", "titles")])
    assert about.choices[0].text == prefixed[0].text
    with pytest.raises(openai.ConflictError, match="name one of them: contents, reasons, titles"):
        ai.completions.create(model="m6rec", prompt="a")


def test_openai_says_how_texts_are_drawn_and_end(ai: openai.OpenAI, service: Service) -> None:
    asked: dict[str, Any] = {"model": "contents", "prompt": PROFILE}
    generator = service.generator("contents")
    wanted = TextOptions(temperature=1.5, top_p=0.9)
    source = PROFILE.splitlines()
    request = Decoding().request(source, "film", "contents", (7, 0), wanted=wanted)
    (drawn,) = generator.write([request])
    warm = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    text = ai.completions.create(**asked, **warm).choices[0].text
    assert text == drawn.text
    assert ai.completions.create(**asked, **warm | {"seed": 8}).choices[0].text != text
    greedy = ai.completions.create(**asked).choices[0].text
    assert ai.completions.create(**asked, **warm | {"temperature": 0}).choices[0].text == greedy
    # A stop text is no part of what comes, and nothing that follows it comes.
    middle = text[len(text) // 2 :][:3]
    *pieces, last = ai.completions.create(**asked, **warm, stop=[middle, ""], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text[: text.index(middle)]
    assert last.choices[0].finish_reason == "stop"
    short = ai.completions.create(**asked, **warm, max_tokens=5, stream=True)
    said = [piece.choices[0] for piece in short]
    assert text.startswith("".join(piece.text for piece in said))
    assert said[-1].finish_reason == "length"
    for wrong in ({"temperature": 3}, {"top_p": 0}, {"stop": ["a"] * 17}):
        with pytest.raises(openai.UnprocessableEntityError):
            ai.completions.create(**asked, **wrong)


def test_openai_chats(ai: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "user, likes comedy"},
        {"role": "user", "content": "I liked Film A"},
        {"role": "assistant", "content": "What else?"},
        {"role": "user", "content": "Film B"},
    ]
    found = ai.chat.completions.create(model="m6rec", messages=messages)
    reply = found.choices[0].message.content
    assert reply
    starts = ("How about Film ", "You could try Film ", "I recommend Film ")
    assert reply.startswith(starts)
    assert found.choices[0].finish_reason == "stop"
    recommended = found.model_extra["m6rec"]["recommended"]["written"]  # type: ignore[index]
    titles = [item["title"] for item in recommended]
    assert titles
    # What was named in the dialogue is not recommended again.
    assert not {title for title in titles if title.startswith(("Film A", "Film B"))}
    messages[0]["content"] = [{"type": "text", "text": messages[0]["content"]}]
    *chunks, last = ai.chat.completions.create(
        model="m6rec", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == reply
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage == found.usage
    with pytest.raises(openai.NotFoundError, match="'ctr' is none of m6rec, talk_replies"):
        ai.chat.completions.create(model="ctr", messages=messages)
    with pytest.raises(openai.ConflictError, match="the last message"):
        ai.chat.completions.create(model="m6rec", messages=messages[:3])
