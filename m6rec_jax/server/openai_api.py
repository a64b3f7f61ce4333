"""`/v1/models`, `/v1/embeddings`, `/v1/completions`, `/v1/chat/completions` as OpenAI's client
calls them. A model's name is that of a task; `m6rec` is the only task that fits.
"""

from __future__ import annotations

import base64
import re
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from m6rec_jax.dialogue.state import SYSTEM, USER
from m6rec_jax.engine.decoding.text_decoding import TextOptions
from m6rec_jax.engine.task_settings import dialogue_part
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.jobs.conversation import Conversation, Dialogue
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asked, Asking, Served, events
from m6rec_jax.server.errors import ApiError, StrictRoute
from m6rec_jax.server.native import writing_task
from m6rec_jax.server.snapshots import ANY_TASK, Snapshot, check_known, text_request
from m6rec_jax.text.records import Item

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
# After a retrieval task's name: vectors of items, not of users.
_ITEMS = ":items"


router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])


@router.get("/v1/models")
async def models(server: Served) -> dict[str, Any]:
    """All tasks, with the jobs that can be asked of them and the data set whose items they
    know; `dialogue` of `m6rec` is a chat.
    """
    return {"object": "list", "data": list(_models(server.current).values())}


@router.get("/v1/models/{name}")
async def model(name: str, server: Served) -> dict[str, Any]:
    """One task."""
    entries = _models(server.current)
    if name not in entries:
        raise ApiError(404, "model_not_found", f"there is no model '{name}'", "model")
    return entries[name]


@router.post("/v1/embeddings")
async def embeddings(body: schemas.Embeddings, asked: Asked) -> dict[str, Any]:
    """Unit vectors of users or items that are described in text."""
    snapshot = asked.snapshot
    texts = [body.input] if isinstance(body.input, str) else body.input
    name = body.model.removesuffix(_ITEMS)
    task = snapshot.task(name, "retrieval")
    retriever = snapshot.service.retriever()
    retriever.settings(task)
    width = snapshot.service.model.model.config.prompts.retrieval_dim
    if body.dimensions not in (None, width):
        raise ApiError(409, "unsupported", f"vectors have {width} numbers", "dimensions")
    counts = await run_in_threadpool(lambda: [snapshot.num_tokens([text]) for text in texts])
    if 0 in counts:
        field = f"input[{counts.index(0)}]"
        raise ApiError(409, "no_text", f"'{field}' has no words", field)
    if name == body.model:
        handler, nobody = snapshot.handler(task, "embeddings"), text_request()
        histories = (RequestText(text.splitlines() or [""], []) for text in texts)
        answers = await asked.answer(*(handler.rendered(nobody, history) for history in histories))
        vectors = [one.values["embedding"] for one in answers]
    else:
        # A function of its own shares no call.
        vectors = await asked.call_together(lambda _: [retriever.embed_items(texts, task)], None)
    if body.encoding_format == "base64":
        shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        shown = [vector.tolist() for vector in vectors]
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(shown)
        ],
        "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
        "m6rec": {"ignored": body.ignored},
    }


@router.post("/v1/completions", response_model=None, responses=_STREAMS)
async def completions(body: schemas.Completion, asked: Asked) -> Any:
    """Texts for users, who are described in text or by a request's fields."""
    if body.stream:
        return await events(_completion_events(asked, body))
    task, accepted = await run_in_threadpool(_accept_completion, asked.snapshot, body)
    texts = [answer.texts[0] for answer in await asked.answer(*accepted)]
    said = [text.text for text in texts]
    usage = await run_in_threadpool(_usage, asked.snapshot, _read(accepted), said)
    about = {**asked.snapshot.described[task, "generation"], "ignored": body.ignored}
    choices = [
        _choice("stop" if text.ended else "length", index, text=text.text)
        for index, text in enumerate(texts)
    ]
    head = _head("text_completion", "cmpl", task)
    return head | {"choices": choices, "usage": usage, "m6rec": about}


@router.post("/v1/chat/completions", response_model=None, responses=_STREAMS)
async def chat(body: schemas.Chat, asked: Asked) -> Any:
    """The next turn of a dialogue, and what is recommended in it."""
    snapshot = asked.snapshot
    conversation = _conversation(snapshot, body)
    dialogue = await run_in_threadpool(_dialogue, conversation, body)
    answer = await asked.call_together(conversation.recommend, dialogue)
    recommended = {
        name: [
            {"title": title, "score": score}
            for title, score in zip(items.titles, items.scores, strict=True)
        ]
        for name, items in (("written", answer.written), ("retrieved", answer.retrieved))
        if items is not None
    }
    about = {"recommended": recommended, "understood": answer.understood}
    about |= {"snapshot": snapshot.version, "ignored": body.ignored}
    texts = [message.text for message in body.messages]
    usage = await run_in_threadpool(_usage, snapshot, texts, [answer.reply])
    if body.stream:
        return await events(_chat_events(body, answer.reply, about, usage))
    message = {"role": "assistant", "content": answer.reply, "refusal": None}
    head = _head("chat.completion", "chatcmpl", body.model)
    return head | {"choices": [_choice("stop", message=message)], "usage": usage, "m6rec": about}


def _models(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {ANY_TASK: {}}
    if snapshot.conversation is not None:
        entries[ANY_TASK] = {"jobs": ["dialogue"], "greeting": snapshot.conversation.greeting}
    for name, settings in snapshot.tasks.items():
        entries[name] = {"kind": settings.kind, "writing": settings.writing}
        entries[name]["jobs"] = snapshot.jobs(name)
        if data := snapshot.data_of(name):
            entries[name]["data_set"] = data.spec.name
        if settings.kind == "retrieval":
            entries[f"{name}{_ITEMS}"] = {"kind": "embeddings"}
    head = {"object": "model", "created": int(snapshot.since), "owned_by": "m6rec"}
    head |= {"kind": "", "writing": "", "jobs": [], "data_set": ""}
    return {name: {"id": name} | head | entry for name, entry in entries.items()}


def _accept_completion(snapshot: Snapshot, body: schemas.Completion) -> tuple[str, list[Accepted]]:
    """The task and its requests."""
    task = writing_task(snapshot, body.model)
    handler, seed = snapshot.handler(task, "generation"), body.seed or 0
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    wanted = TextOptions(body.max_tokens, [*filter(None, stops)], body.temperature, body.top_p)
    try:
        if isinstance(body.prompt, dict):
            row = body.prompt | {"candidates": [body.item or {}]}
            one = snapshot.accept(row, task, "generation", seed)
            return task, [one._replace(wanted=wanted)]
        item, unknown = Item("", {}), set[str]()
        if body.item is not None:
            (item,) = handler.parser.items([body.item], unknown)
            check_known(unknown, handler)
        handler.check_item(item, "item")
    except RejectedRow as problem:  # of the one entry of a list
        said = re.sub(r"^'(candidates|items)(\[0\])?", "'item", str(problem))
        raise RejectedRow(problem.kind, said) from None
    one_text, about = snapshot.tasks[task].reads_text, text_request([item])
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    histories = [[text] if one_text else text.splitlines() or [""] for text in prompts]
    texts = [RequestText(history, []) for history in histories]
    return task, [handler.rendered(about, text, seed, wanted) for text in texts]


async def _completion_events(
    asked: Asking, body: schemas.Completion
) -> AsyncGenerator[Mapping[str, Any], None]:
    task, prompts = await run_in_threadpool(_accept_completion, asked.snapshot, body)
    if len(prompts) != 1:
        raise ApiError(409, "unsupported", "one prompt is streamed at a time", "prompt")
    head, whole, reason = _head("text_completion", "cmpl", task), "", "stop"
    async for text, answer in asked.pieces(prompts[0]):
        whole += text
        if text:
            yield head | {"choices": [_choice(text=text)]}
        if answer is not None:
            reason = "stop" if answer.texts[0].ended else "length"
    yield head | {"choices": [_choice(reason, text="")], "m6rec": {"ignored": body.ignored}}
    if body.wants_usage:
        usage = await run_in_threadpool(_usage, asked.snapshot, _read(prompts), [whole])
        yield head | {"choices": [], "usage": usage}


async def _chat_events(
    body: schemas.Chat, reply: str, about: Mapping[str, Any], usage: Mapping[str, int]
) -> AsyncGenerator[Mapping[str, Any], None]:
    head = _head("chat.completion.chunk", "chatcmpl", body.model)
    for delta in ({"role": "assistant", "content": ""}, {"content": reply}):
        yield head | {"choices": [_choice(delta=delta)]}
    yield head | {"choices": [_choice("stop", delta={})], "m6rec": about}
    if body.wants_usage:
        yield head | {"choices": [], "usage": usage}


def _conversation(snapshot: Snapshot, body: schemas.Chat) -> Conversation:
    """What answers a dialogue; raises ApiError where it cannot be answered."""
    parts = {n for n, s in snapshot.tasks.items() if dialogue_part(s)}
    if body.model not in (ANY_TASK, *parts):
        known = ", ".join([ANY_TASK, *sorted(parts)])
        raise ApiError(404, "model_not_found", f"'{body.model}' is none of {known}", "model")
    if snapshot.conversation is None:
        why = f"this model cannot chat: {snapshot.no_conversation}"
        why += ". /v1/completions writes texts, /v1/recommend recommends"
        raise ApiError(409, "no_dialogues", why, "model")
    if body.messages[-1].role != "user":
        raise ApiError(409, "no_question", "the last message must be the user's", "messages")
    return snapshot.conversation


def _dialogue(conversation: Conversation, body: schemas.Chat) -> Dialogue:
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


def _choice(reason: str | None = None, index: int = 0, **said: Any) -> dict[str, Any]:
    """A text, message or delta; the reason why it ended, if it has."""
    return {"index": index, **said, "finish_reason": reason, "logprobs": None}


def _head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    id_ = f"{prefix}-{uuid.uuid4().hex}"
    return {"id": id_, "object": kind, "created": int(time.time()), "model": model}


def _read(accepted: Iterable[Accepted]) -> Iterator[str]:
    return (segment for one in accepted for segment in one.text.history)


def _usage(snapshot: Snapshot, read: Iterable[str], written: Iterable[str]) -> dict[str, int]:
    counts = [snapshot.num_tokens(texts) for texts in (read, written)]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return dict(zip(names, [*counts, sum(counts)], strict=True))
