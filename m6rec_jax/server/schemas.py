"""Bodies of requests and answers, with examples, as the OpenAPI page shows them.

What users, behaviours and items hold is checked by `requests.request`, which knows the data set.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_USER: dict[str, Any] = {"age": 24, "gender": "female", "occupation": "writer"}
_EVENTS: list[Any] = [{"item": "50", "time": 1764000000, "value": 5}]
_HISTORY: dict[str, Any] = {"user": _USER, "history": _EVENTS}

# A catalogue's id, or an object of the items table's columns.
AnyItem = str | dict[str, Any]


class Ask(BaseModel):
    """Who is asked about: fields of files of requests (docs/requests.md)."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_HISTORY]})

    task: str | None = Field(None, description="one of the model's tasks; none: the only one")
    user: dict[str, Any] | str | None = Field(
        None, description="columns of the users table, and `id`; a text where they have no others"
    )
    time: Any = Field(None, description="unix seconds or ISO 8601; none: now")
    history: list[Any] | None = Field(None, description="what the user did, oldest first")
    statistics: dict[str, Any] | None = Field(None, description="in place of those looked up")
    debug: bool = Field(False, description="whether the answer has `debug`")


class Score(Ask):
    """Candidates to be scored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [_HISTORY | {"candidates": ["181", {"title": "New"}]}]}
    )
    candidates: list[Any] = Field(description="ids, or objects of the items table's columns")
    job: Literal["scoring", "likelihood"] | None = Field(
        None, description="`likelihood`: zero-shot; none: what the task is for"
    )


class Retrieve(Ask):
    """Items of the catalogue to be found."""

    model_config = ConfigDict(json_schema_extra={"examples": [_HISTORY | {"k": 10}]})
    k: int | None = Field(None, ge=1, description="how many")
    exclude: list[Any] | None = Field(None, description="ids that must not come")


class Recommend(Retrieve):
    """Items to be recommended: the hybrid's, or titles that are generated."""

    by: Literal["reranking", "titles"] = Field(
        "reranking", description="`titles`: by generating titles of the catalogue"
    )
    scorer: str | None = Field(
        None, description="task that orders what was found; '': none; none: the one that there is"
    )
    about: Any = Field(None, description="for titles: the item that the prefix is about")


class Write(Ask):
    """Texts to be written: one about each candidate, or one about none."""

    model_config = ConfigDict(json_schema_extra={"examples": [_HISTORY | {"candidates": ["181"]}]})
    candidates: list[Any] | None = Field(None, description="as for scoring")
    input: str | None = Field(
        None, description="of a task of seqio: the text, in place of all other fields"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of sampling, where the server samples")


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
    others in its batch; none where late interaction is off. `ignored`: fields that mean nothing
    here, such as misspelt ones and columns that the data set does not have.
    """

    read: list[Read]
    milliseconds: dict[str, float]
    segments: dict[str, dict[str, int]]
    ignored: list[str]


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
    """`debug` is there where the request wants it."""

    debug: Debug | None = None


class RankedItem(BaseModel):
    """An item and what it is ordered by. `id` is empty for an item that has none."""

    id: str
    title: str
    score: float


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


class Rerank(BaseModel):
    """As Cohere's and Jina's clients ask; other fields are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "m6rec",
                    "query": "24 years old, female, writer\nliked Fargo, crime",
                    "documents": ["Heat, crime", {"id": "181"}],
                    "top_n": 1,
                }
            ]
        }
    )
    model: str = Field("m6rec", description="a task of scoring, reranking or likelihood")
    query: str | dict[str, Any] = Field(
        description="the history as text, a segment a line; or an object with the fields of a "
        "request (`user`, `history`, ...)"
    )
    documents: list[AnyItem] = Field(
        min_length=1,
        description="candidates as text; or objects: `{'text': ...}`, or an item's columns or `id`",
    )
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class Embeddings(BaseModel):
    """As OpenAI's client asks."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "m6rec", "input": "liked Fargo, crime"}]}
    )
    model: str = Field(description="a task of retrieval: vectors of users; `TASK:items`: of items")
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="the model's own, if any")


class StreamOptions(BaseModel):
    """Whether a last event counts tokens."""

    include_usage: bool = False


class Completion(BaseModel):
    """As OpenAI's client asks. What it leaves out is as the server is set (`Decoding` in gin)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "m6rec", "prompt": "liked Fargo, crime"}]}
    )
    model: str = Field(description="a task of generation")
    prompt: str | list[str] | dict[str, Any] = Field(
        description="the history as text, a segment a line; or an object with the fields of a "
        "request (`user`, `history`, ...)"
    )
    item: AnyItem | None = Field(None, description="that the text is about; no field of OpenAI's")
    max_tokens: int | None = Field(None, ge=1)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest tokens")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**32)
    n: Literal[1] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a dialogue. What a system message says is read as what is known of the user."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class Chat(BaseModel):
    """As OpenAI's client asks."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "m6rec", "messages": [{"role": "user", "content": "I liked Fargo."}]}
            ]
        }
    )
    model: str = Field(description="`m6rec`, or any task of dialogues")
    messages: list[Message] = Field(min_length=1)
    n: Literal[1] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class Predict(BaseModel):
    """Vertex AI's contract: every instance is a request with the fields of its job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "instances": [_HISTORY | {"candidates": ["181"]}],
                    "parameters": {"job": "scoring"},
                }
            ]
        }
    )
    instances: list[dict[str, Any]]
    parameters: dict[str, Any] | None = Field(None, description="`task` and `job` of all instances")


class PutPrompts(BaseModel):
    """Prompts to be added, or replaced by what the bank's folder holds now."""

    index: str | None = Field(None, description="folder of the catalogue's index, for retrieval")


class PutData(BaseModel):
    """Folders and files on the server to read anew; what is left out, or null, stays the same."""

    prepared: str | None = None
    items: str | None = None
    index: str | dict[str, str] | None = None
