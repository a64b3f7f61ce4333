"""Bodies of requests and answers, as the OpenAPI page shows them.

What users, events and items hold depends on the data set: `row_types` checks it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypeAliasType

from m6rec_jax.server.row_types import (
    INTEGRAL,
    MAX_CANDIDATES,
    MAX_EXCLUDE,
    MAX_HISTORY,
    Id,
    ShortId,
    Text,
    Time,
    Whole,
    check_names,
)

# Of these the OpenAPI page shows what the data sets have.
User = TypeAliasType("User", dict[str, Any] | str)
Item = TypeAliasType("Item", dict[str, Any] | Id)
Event = TypeAliasType("Event", dict[str, Any] | str)
Statistics = TypeAliasType("Statistics", dict[str, Any])
Known = TypeAliasType("Known", dict[str, Any])

_Candidates = Annotated[list[Item], Field(max_length=MAX_CANDIDATES)]
# Requests of one body.
_MANY = 128
_Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32), INTEGRAL]
_Positive = Annotated[int, Field(strict=True, ge=1, lt=2**31), INTEGRAL]
_Prompts = Annotated[list[Text], Field(min_length=1, max_length=_MANY)]


class Strict(BaseModel):
    """Without fields of other names."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        return check_names(given, cls.model_fields, {})


class Search(Strict):
    """What is looked for in a catalogue."""

    task: str | None = Field(None, description="whose; none: the first that has one")
    query: str = Field("", max_length=200, description="an id, or a title", examples=["fargo"])
    limit: int = Field(20, ge=1, le=100)


class Foreign(BaseModel):
    """As other services' clients ask: fields that mean nothing here stand in the answer."""

    model_config = ConfigDict(extra="allow")

    @property
    def ignored(self) -> list[str]:
        """Names of these fields."""
        return sorted(self.model_extra or ())


class Error(BaseModel):
    """What is wrong."""

    class Reason(BaseModel):
        """`code` stays as it is; `param` is the field that is meant."""

        message: str
        type: Literal["invalid_request_error", "server_error"]
        param: str | None
        code: str

    error: Reason


class Ask(Strict):
    """Who is asked about: fields of files of requests (docs/requests.md)."""

    task: str | None = Field(None, description="one of the model's tasks; none: the only one")
    user: User | None = Field(
        None, description="columns of the users table, and `id`; a text where they have no others"
    )
    time: Time | None = Field(None, description="unix seconds or ISO 8601; none: now")
    history: Annotated[list[Event], Field(max_length=MAX_HISTORY)] | None = Field(
        None, description="what the user did, oldest first"
    )
    statistics: Statistics | None = Field(None, description="in place of those looked up")
    debug: bool = Field(False, strict=True, description="whether the answer has `debug`")


class Score(Ask):
    """Candidates to be scored."""

    candidates: _Candidates = Field(description="ids, or objects of the items table's columns")
    job: Literal["scoring", "likelihood"] | None = Field(
        None, description="`likelihood`: zero-shot; none: what the task is for"
    )


class Retrieve(Ask):
    """Items of the catalogue to be found."""

    k: Annotated[int, Field(strict=True, ge=1, le=1000), INTEGRAL] | None = Field(
        None, description="how many"
    )
    exclude: Annotated[list[ShortId], Field(max_length=MAX_EXCLUDE)] | None = Field(
        None, description="ids that must not come"
    )


class Recommend(Retrieve):
    """Items to be recommended: the hybrid's, or titles that are generated."""

    by: Literal["reranking", "titles"] = Field(
        "reranking", description="`titles`: by generating titles of the catalogue"
    )
    scorer: str | None = Field(
        None, description="task that orders what was found; '': none; none: the one that there is"
    )
    about: Item | None = Field(None, description="for titles: the item that the prefix is about")


class Write(Ask):
    """Texts to be written: one about each candidate, or one about none."""

    candidates: _Candidates | None = Field(None, description="as for scoring")
    input: Text | None = Field(
        None, description="of a task of seqio: the text, in place of all other fields"
    )
    seed: _Seed = Field(0, description="of sampling, where the server samples")


class Read(BaseModel):
    """What the model read for a task: segments of the history, and candidates."""

    task: str
    job: str
    history: list[str]
    candidates: list[str]


class Debug(BaseModel):
    """How an answer came about, for who asks with `debug`.

    `milliseconds`: `accept` checks and renders, `wait` is the queue, `run` the batch, and `total`
    all of it. `segments`: by pool, where segments were found meanwhile, this request's and those of
    others in its batch; none where late interaction is off.
    """

    read: list[Read]
    milliseconds: dict[str, float]
    segments: dict[str, dict[str, int]]


class Answered(BaseModel):
    """What answered.

    `prompts` and `data` are fingerprints: equal ones give equal answers. `snapshot` counts the
    server's changes.
    """

    task: str
    job: str
    prompts: str
    data: str
    snapshot: int


class AnsweredRequest(Answered):
    """`unknown_items`: of the history, which were left out: neither the catalogue has them, nor
    were they described. `debug` is there where the request wants it.
    """

    unknown_items: list[str]
    debug: Debug | None = None


class RankedItem(BaseModel):
    """An item and what it is ordered by. `id` is empty for an item that has none. `details`: what
    is known of it beside its title. `because`: titles of the history that people have together
    with it, at most two.
    """

    id: str
    title: str
    score: float
    details: str
    because: list[str]


class RecommendedItem(RankedItem):
    """`retrieval_score` is what the item was found by, where a scorer ordered it anew."""

    retrieval_score: float | None = None


class Ranked(AnsweredRequest):
    """Items: candidates in their order, or what was found, best first."""

    items: list[RankedItem]


class Recommended(AnsweredRequest):
    """Items, best first; `scored_by` answered last."""

    items: list[RecommendedItem]
    scored_by: Answered | None = None


class WrittenText(BaseModel):
    """A text, about the item of this id and title."""

    id: str
    title: str
    text: str
    log_probability: float


class Written(AnsweredRequest):
    """Texts, in the candidates' order."""

    texts: list[WrittenText]


class CatalogueItem(BaseModel):
    """An item of the catalogue."""

    id: str
    title: str


class Catalogue(BaseModel):
    """Items that were found, and what requests about them may hold.

    `user_columns` and `item_columns` are fields of `user` and of items, with their types. `value`
    names the column of behaviours' `value`, null where they have none; `liked_at_least` is the
    least value of an item that is liked.
    """

    task: str
    num_items: int
    user_columns: dict[str, str]
    item_columns: dict[str, str]
    value: str | None
    liked_at_least: float | None
    items: list[CatalogueItem]


class Rerank(Foreign):
    """As Cohere's and Jina's clients ask."""

    model: str = Field("m6rec", description="a task of scoring, reranking or likelihood")
    query: Text | Known = Field(
        description="the history as text, a segment a line; or an object with the fields of a "
        "request (`user`, `history`, ...)"
    )
    documents: Annotated[list[Item], Field(min_length=1, max_length=MAX_CANDIDATES)] = Field(
        description="candidates as text; or objects: `{'text': ...}`, or an item's columns or `id`"
    )
    top_n: _Positive | None = None
    return_documents: bool = Field(False, strict=True)


class Embeddings(Foreign):
    """As OpenAI's client asks."""

    model: str = Field(description="a task of retrieval: vectors of users; `TASK:items`: of items")
    input: Text | _Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = Field(None, description="the model's own, if any")


class StreamOptions(BaseModel):
    """Whether a last event counts tokens."""

    include_usage: bool = Field(False, strict=True)


class Completion(Foreign):
    """As OpenAI's client asks. What it leaves out is as the server is set (`Decoding` in gin)."""

    model: str = Field(description="a task of generation")
    prompt: Text | _Prompts | Known = Field(
        description="the history as text, a segment a line; or an object with the fields of a "
        "request (`user`, `history`, ...)"
    )
    item: Item | None = Field(None, description="that the text is about; no field of OpenAI's")
    max_tokens: _Positive | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = Field(
        None, description="0: the likeliest tokens"
    )
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    seed: _Seed | None = None
    n: Literal[1] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False
    stream_options: StreamOptions | None = None


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A turn of a dialogue. What a system message says is read as what is known of the user."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class Chat(Foreign):
    """As OpenAI's client asks."""

    model: str = Field(description="`m6rec`, or any task of dialogues")
    messages: list[Message] = Field(min_length=1, max_length=MAX_HISTORY)
    n: Literal[1] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False
    stream_options: StreamOptions | None = None


class Parameters(Strict):
    """Of all instances; none: the only task, and what it is for."""

    task: str | None = None
    job: str | None = None


class Predict(Strict):
    """Vertex AI's contract: every instance is a request with the fields of its job."""

    instances: list[dict[str, Any]] = Field(max_length=_MANY)
    parameters: Parameters | None = None


class PutPrompts(Strict):
    """Prompts to be added, or replaced by what the bank's folder holds now."""

    index: str | None = Field(None, description="folder of the catalogue's index, for retrieval")


class PutData(Strict):
    """Folders and files on the server to read anew; what is left out, or null, stays the same."""

    prepared: str | None = None
    items: str | None = None
    index: str | dict[str, str] | None = None
