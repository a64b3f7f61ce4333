"""Bodies of requests, as the OpenAPI page shows them.

What users, events and items hold depends on the data set: `requests.request` checks it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from m6rec_jax.io.closest import did_you_mean

# Most requests of one body, characters of a text and of an id, and entries of lists.
_MANY, _MAX_TEXT, _MAX_ID, _MAX_LIST, _MAX_EXCLUDE = 128, 20_000, 256, 1000, 10_000
# A little less than 64 bits: the document has bounds as floats, which hold this exactly.
_MAX_WHOLE = 9 * 10**18
# JSON's 3.0 is whole, and "3" is no number.
_INTEGRAL = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
_Whole = Annotated[int, Field(strict=True, ge=-_MAX_WHOLE, le=_MAX_WHOLE), _INTEGRAL]
_Positive = Annotated[int, Field(strict=True, ge=1, lt=2**31), _INTEGRAL]
_Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32), _INTEGRAL]
_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_Prompts = Annotated[list[_Text], Field(min_length=1, max_length=_MANY)]
_Object = dict[str, Any]  # columns are those of the data set, see `GET /v1/items`
_Item = _Object | _Text | Annotated[int, Field(strict=True), _INTEGRAL]
_ShortId = Annotated[str, Field(max_length=_MAX_ID)] | _Whole
_Candidates = Annotated[list[_Item], Field(max_length=_MAX_LIST)]
_Time = Annotated[float, Field(strict=True)] | _Text | None


class Strict(BaseModel):
    """Without fields of other names."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, given: Any) -> Any:
        """Names the nearest field."""
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                hint = f"there is no field {name!r}{did_you_mean(name, cls.model_fields)}"
                raise PydanticCustomError("unknown_field", "{hint}", {"hint": hint, "field": name})
        return given


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
    user: _Object | _Text | None = Field(
        None, description="columns of the users table, and `id`; a text where they have no others"
    )
    time: _Time = Field(None, description="unix seconds or ISO 8601; none: now")
    history: Annotated[list[_Object | _Text], Field(max_length=_MAX_LIST)] | None = Field(
        None, description="what the user did, oldest first: `item`, `time` and `value`"
    )
    statistics: _Object | None = Field(None, description="in place of those looked up")
    debug: bool = Field(False, strict=True, description="whether the answer has `debug`")


class Score(Ask):
    """Candidates to be scored."""

    candidates: _Candidates = Field(description="ids, or objects of the items table's columns")
    job: Literal["scoring", "likelihood"] | None = Field(
        None, description="`likelihood`: zero-shot; none: what the task is for"
    )


class Retrieve(Ask):
    """Items of the catalogue to be found."""

    k: Annotated[int, Field(strict=True, ge=1, le=1000), _INTEGRAL] | None = Field(
        None, description="how many"
    )
    exclude: Annotated[list[_ShortId], Field(max_length=_MAX_EXCLUDE)] | None = Field(
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
    about: _Item | None = Field(None, description="for titles: the item that the prefix is about")


class Write(Ask):
    """Texts to be written: one about each candidate, or one about none."""

    candidates: _Candidates | None = Field(None, description="as for scoring")
    input: _Text | None = Field(
        None, description="of a task of seqio: the text, in place of all other fields"
    )
    seed: _Seed = Field(0, description="of sampling, where the server samples")


class Rerank(Foreign):
    """As Cohere's and Jina's clients ask."""

    model: str = Field("m6rec", description="a task of scoring or likelihood")
    query: _Text | _Object = Field(
        description="the history as text, a segment a line; or an object with the fields of a "
        "request (`user`, `history`, ...)"
    )
    documents: Annotated[list[_Item], Field(min_length=1, max_length=1000)] = Field(
        description="candidates as text; or objects: `{'text': ...}`, or an item's columns or `id`"
    )
    top_n: _Positive | None = None
    return_documents: bool = Field(False, strict=True)


class Embeddings(Foreign):
    """As OpenAI's client asks."""

    model: str = Field(description="a task of retrieval: vectors of users; `TASK:items`: of items")
    input: _Text | _Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: _Whole | None = Field(None, description="the model's own, if any")


class StreamOptions(BaseModel):
    """Whether a last event counts tokens."""

    include_usage: bool = Field(False, strict=True)


class Streamed(Foreign):
    """One text, at once or as it comes."""

    n: Literal[1] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream's last event counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class Completion(Streamed):
    """As OpenAI's client asks. What it leaves out is as the server is set (`Decoding` in gin)."""

    model: str = Field(description="a task of generation")
    prompt: _Text | _Prompts | _Object = Field(
        description="the history as text, a segment a line; or an object with the fields of a "
        "request (`user`, `history`, ...)"
    )
    item: _Item | None = Field(None, description="that the text is about; no field of OpenAI's")
    max_tokens: _Positive | None = None
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = Field(
        None, description="0: the likeliest tokens"
    )
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    seed: _Seed | None = None


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: _Text


class Message(BaseModel):
    """A turn of a dialogue. What a system message says is read as what is known of the user."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class Chat(Streamed):
    """As OpenAI's client asks."""

    model: str = Field(description="`m6rec`, or any task of dialogues")
    messages: list[Message] = Field(min_length=1, max_length=_MAX_LIST)


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
