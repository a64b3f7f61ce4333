"""`/v1/models`, `/v1/embeddings`, `/v1/completions`, `/v1/chat/completions` as OpenAI's client
calls them. A model's name is that of a task; `m6rec` is the only task that fits.
"""

from __future__ import annotations

import base64
import re
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from m6rec_jax.dialogue.state import SYSTEM, USER
from m6rec_jax.engine.decoding.text_decoding import TextOptions
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.jobs.conversation import Answer, Conversation
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asking, Server, asking, events
from m6rec_jax.server.errors import ApiError, StrictRoute
from m6rec_jax.server.native import writing_task
from m6rec_jax.server.snapshots import ANY_TASK, Snapshot, text_request
from m6rec_jax.text.records import Item

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
# After a retrieval task's name: vectors of items, not of users.
_ITEMS = ":items"


def routes(server: Server) -> APIRouter:
    """The routes, for `FastAPI.include_router`."""
    router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """All tasks, with the jobs that can be asked of them and the data set whose items they
        know; `dialogue` of `m6rec` is a chat.
        """
        return {"object": "list", "data": _models(server.snapshots.current)}

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One task."""
        for found in _models(server.snapshots.current):
            if found["id"] == name:
                return found
        raise ApiError(404, "model_not_found", f"there is no model '{name}'", "model")

    @router.post("/v1/embeddings")
    async def embeddings(body: schemas.Embeddings, request: Request) -> dict[str, Any]:
        """Unit vectors of users or items that are described in text."""
        async with asking(server, request) as asked:
            return await _embed(asked, body)

    @router.post("/v1/completions", response_model=None, responses=_STREAMS)
    async def completions(body: schemas.Completion, request: Request) -> Any:
        """Texts for users, who are described in text or by a request's fields."""
        if body.stream:
            return await events(_completion_events(server, request, body))
        async with asking(server, request) as asked:
            return await _complete(server, asked, body)

    @router.post("/v1/chat/completions", response_model=None, responses=_STREAMS)
    async def chat(body: schemas.Chat, request: Request) -> Any:
        """The next turn of a dialogue, and what is recommended in it."""
        if body.stream:
            return await events(_chat_events(server, request, body))
        async with asking(server, request) as asked:
            conversation = _conversation(asked.snapshot, body)
            dialogue = await run_in_threadpool(_dialogue, conversation, body)
            answer: Answer = await asked.call_together(conversation.recommend, dialogue)
            return await run_in_threadpool(_chat_answer, asked.snapshot, body, answer)

    return router


def _models(snapshot: Snapshot) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {ANY_TASK: {}}
    if snapshot.conversation is not None:
        found[ANY_TASK] = {"jobs": ["dialogue"], "greeting": snapshot.conversation.greeting}
    for name, settings in snapshot.tasks.items():
        found[name] = {"kind": settings.kind, "writing": settings.writing}
        found[name]["jobs"] = snapshot.jobs(name)
        if data := snapshot.data_of(name):
            found[name]["data_set"] = data.spec.name
        if settings.kind == "retrieval":
            found[f"{name}{_ITEMS}"] = {"kind": "embeddings"}
    head = {"object": "model", "created": int(snapshot.since), "owned_by": "m6rec"}
    head |= {"kind": "", "writing": "", "jobs": [], "data_set": ""}
    return [{"id": name} | head | own for name, own in found.items()]


async def _embed(asked: Asking, body: schemas.Embeddings) -> dict[str, Any]:
    snapshot = asked.snapshot
    texts = [body.input] if isinstance(body.input, str) else body.input
    name = body.model.removesuffix(_ITEMS)
    task = snapshot.task(name, "retrieval", "model")
    retriever = snapshot.service.resources.retriever()
    retriever.check_task(task)
    width = snapshot.service.model.model.config.prompts.retrieval_dim
    if body.dimensions not in (None, width):
        raise ApiError(409, "unsupported", f"vectors have {width} numbers", "dimensions")
    counts = await run_in_threadpool(lambda: [snapshot.num_tokens([text]) for text in texts])
    for index, count in enumerate(counts):
        if not count:
            raise ApiError(409, "no_text", f"'input[{index}]' has no words", f"input[{index}]")
    if name == body.model:
        accepted = [await asked.accept_text(_segments(text), task, "embeddings") for text in texts]
        vectors = [one.columns()["embedding"] for one in await asked.answer(*accepted)]
    else:
        # A function of its own shares no call.
        vectors = await asked.call_together(lambda _: [retriever.embed_items(texts, task)], None)
    in_base64 = body.encoding_format == "base64"
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if in_base64 else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": _usage(sum(counts)),
        "m6rec": {"ignored": body.ignored},
    }


def _segments(text: str, settings: TaskSettings | None = None) -> list[str]:
    """A segment a line; of a task that reads one text, that."""
    return [text] if settings and settings.reads_text else text.splitlines() or [""]


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def _accept_completion(
    server: Server, asked: Asking, body: schemas.Completion
) -> tuple[str, list[Accepted]]:
    task = writing_task(asked, body.model, field="model")
    wanted = TextOptions(body.max_tokens, _stops(body), body.temperature, body.top_p)
    if isinstance(body.prompt, dict):
        row = body.prompt | {"candidates": [body.item or {}]}
        try:
            one = await asked.accept(row, task, "generation", body.seed or 0)
        except RejectedRow as problem:
            raise _of_item(problem, "candidates") from None
        return task, [one._replace(wanted=wanted)]
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    item = await run_in_threadpool(_item, asked.snapshot, body.item, task)
    accepted = [
        await asked.accept_text(
            *(_segments(text, asked.snapshot.tasks[task]), task, "generation"),
            request=text_request([item]),
            number=body.seed or 0,
            wanted=wanted,
        )
        for text in prompts
    ]
    return task, accepted


def _item(snapshot: Snapshot, entry: Any, task: str) -> Item:
    """What a text is about; raises RejectedRow where the task can write none about it."""
    answerer: Any = snapshot.service.answerer("generation")
    item = Item("", {})
    try:
        if entry is not None:
            item = snapshot.item(entry, task, "generation")
        answerer.check_item(item, task, "item")
    except RejectedRow as problem:
        raise _of_item(problem, "items") from None
    return item


def _of_item(problem: RejectedRow, name: str) -> RejectedRow:
    """What is wrong with the one entry of a list, said of `item`."""
    said = re.sub(rf"^'{name}(\[0\])?", "'item", str(problem))
    return RejectedRow(problem.kind, said)


async def _complete(server: Server, asked: Asking, body: schemas.Completion) -> dict[str, Any]:
    task, accepted = await _accept_completion(server, asked, body)
    results: Sequence[Any] = await asked.answer(*accepted)
    choices, written = [], 0
    for index, result in enumerate(results):
        text, reason = _cut(asked.snapshot, body, task, result)
        written += asked.snapshot.num_tokens([text])
        choices.append({"index": index, "text": text, "finish_reason": reason, "logprobs": None})
    segments = [segment for one in accepted for segment in one.text.history]
    read = await run_in_threadpool(asked.snapshot.num_tokens, segments)
    described = asked.snapshot.describe(task, "generation")
    return _head("text_completion", "cmpl", task) | {
        "choices": choices,
        "usage": _usage(read, written),
        "m6rec": {**described, "ignored": body.ignored},
    }


def _stops(body: schemas.Completion) -> list[str]:
    given = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    return [text for text in given if text]


def _cut(snapshot: Snapshot, body: schemas.Completion, task: str, result: Any) -> tuple[str, str]:
    """The text as far as it is wanted, and why it ends there."""
    text, reason = result.texts[0], "stop" if result.ended[0] else "length"
    answerer: Any = snapshot.service.answerer("generation")
    if answerer.one_by_one(task):
        return text, reason  # it grew as far as it was wanted
    for stop in _stops(body):
        before, found, _ = text.partition(stop)
        if found:
            text, reason = before, "stop"
    if body.max_tokens is not None:
        vocabulary = snapshot.service.model.vocabulary
        tokens = vocabulary.encode_array(text)
        if len(tokens) > body.max_tokens:
            text, reason = vocabulary.decode(tokens[: body.max_tokens]), "length"
    return text, reason


async def _completion_events(
    server: Server, request: Request, body: schemas.Completion
) -> AsyncGenerator[Mapping[str, Any], None]:
    async with asking(server, request) as asked:
        task, prompts = await _accept_completion(server, asked, body)
        if len(prompts) != 1:
            raise ApiError(409, "unsupported", "one prompt is streamed at a time", "prompt")
        (accepted,) = prompts
        head = _head("text_completion", "cmpl", task)

        def event(text: str, reason: str | None) -> dict[str, Any]:
            choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
            return head | {"choices": [choice]}

        answerer: Any = asked.snapshot.service.answerer("generation")
        grows = answerer.one_by_one(task)
        whole, reason = "", "stop"
        async for piece, result in asked.pieces(accepted):
            if result is not None:
                whole, reason = _cut(asked.snapshot, body, task, result)
            if grows and piece:
                yield event(piece, None)
        if not grows:
            yield event(whole, None)
        yield event("", reason) | {"m6rec": {"ignored": body.ignored}}
        if body.stream_options is not None and body.stream_options.include_usage:
            read = await run_in_threadpool(asked.snapshot.num_tokens, accepted.text.history)
            yield head | {"choices": [], "usage": _usage(read, asked.snapshot.num_tokens([whole]))}


def _conversation(snapshot: Snapshot, body: schemas.Chat) -> Conversation:
    """What answers a dialogue; raises ApiError where it cannot be answered."""
    parts = {n for n, s in snapshot.tasks.items() if dialogue_part(s)}
    if body.model not in (ANY_TASK, *parts):
        known = ", ".join([ANY_TASK, *sorted(parts)])
        raise ApiError(404, "model_not_found", f"'{body.model}' is none of {known}", "model")
    if snapshot.conversation is None:
        raise ApiError(
            409,
            "no_dialogues",
            f"this model cannot chat: {snapshot.no_conversation}. /v1/completions writes texts, "
            "/v1/recommend recommends",
            "model",
        )
    if body.messages[-1].role != "user":
        raise ApiError(409, "no_question", "the last message must be the user's", "messages")
    return snapshot.conversation


def _dialogue(conversation: Conversation, body: schemas.Chat) -> Conversation:
    """What was said so far."""
    known = [m.text for m in body.messages if m.role in ("system", "developer")]
    turns = [
        (USER if message.role == "user" else SYSTEM, message.text)
        for message in body.messages[:-1]
        if message.role in ("user", "assistant")
    ]
    history = [line for text in known for line in text.splitlines()] or None
    dialogue = conversation.resumed(turns, history)
    dialogue.hear(body.messages[-1].text)
    return dialogue


def _said(answer: Answer) -> tuple[str, dict[str, Any]]:
    """The reply; and what is recommended, with the wishes that were understood."""
    found = {
        name: [
            {"title": title, "score": score}
            for title, score in zip(recommended.titles, recommended.scores, strict=True)
        ]
        for name, recommended in (("written", answer.written), ("retrieved", answer.retrieved))
        if recommended is not None
    }
    return answer.reply, {"recommended": found, "understood": answer.understood}


def _chat_answer(snapshot: Snapshot, body: schemas.Chat, answer: Answer) -> dict[str, Any]:
    content, recommended = _said(answer)
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    read = snapshot.num_tokens([message.text for message in body.messages])
    return _head("chat.completion", "chatcmpl", body.model) | {
        "choices": [choice],
        "usage": _usage(read, snapshot.num_tokens([content])),
        "m6rec": recommended | {"snapshot": snapshot.version, "ignored": body.ignored},
    }


async def _chat_events(
    server: Server, request: Request, body: schemas.Chat
) -> AsyncGenerator[Mapping[str, Any], None]:
    async with asking(server, request) as asked:
        conversation = _conversation(asked.snapshot, body)
        head = _head("chat.completion.chunk", "chatcmpl", body.model)

        def event(
            delta: Mapping[str, Any], reason: str | None = None, **more: Any
        ) -> dict[str, Any]:
            return (
                head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} | more
            )

        begins = event({"role": "assistant", "content": ""})
        dialogue = await run_in_threadpool(_dialogue, conversation, body)
        answer: Answer = await asked.call_together(conversation.recommend, dialogue)
        content, recommended = _said(answer)
        yield begins
        yield event({"content": content})
        about = {"snapshot": asked.snapshot.version, "ignored": body.ignored}
        yield event({}, "stop", m6rec=recommended | about)
        if body.stream_options is not None and body.stream_options.include_usage:
            texts = [message.text for message in body.messages]
            read = await run_in_threadpool(asked.snapshot.num_tokens, texts)
            yield head | {
                "choices": [],
                "usage": _usage(read, asked.snapshot.num_tokens([content])),
            }


def _head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _usage(read: int, written: int = 0) -> dict[str, int]:
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
