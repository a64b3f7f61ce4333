"""Human dialogues in turns, as a corpus: the first speaker is USER, the other one SYSTEM."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.data.corpora import repaired
from m6rec_jax.data.texts import CorpusSpec, Text, write_corpus

_SPEAKERS = ("USER", "SYSTEM")


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The turns of a dialogue, "USER: ..." and "SYSTEM: ..."; none where it has not two speakers.

    Args:
      messages: each with a `sender` and a `text`. Empty ones are left out; those of one speaker
        that follow each other are joined.
    """
    said = [(message["sender"], repaired(message["text"])) for message in messages]
    said = [(sender, text) for sender, text in said if text]
    senders = list(dict.fromkeys(sender for sender, _ in said))
    if len(senders) != len(_SPEAKERS):
        return []
    names = dict(zip(senders, _SPEAKERS, strict=True))
    turns: list[tuple[str, str]] = []
    for sender, text in said:
        if turns and turns[-1][0] == names[sender]:
            text = f"{turns.pop()[1]} {text}"
        turns.append((names[sender], text))
    return [f"{name}: {text}" for name, text in turns]


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    path = raw["chitchat-dialogues"] / "dataset.json"
    conversations = json.loads(path.read_text("utf-8"))
    texts = []
    for name, conversation in conversations.items():
        turns = turns_of([message for turn in conversation["messages"] for message in turn])
        if turns:
            texts.append(Text(name, name, repaired(conversation.get("prompt") or ""), tuple(turns)))
    write_corpus(folder, CorpusSpec.load(folder), texts)
    return {"dialogues without two speakers left out": len(conversations) - len(texts)}
