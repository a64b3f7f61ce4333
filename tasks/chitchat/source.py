"""Human dialogues in turns, as a corpus: the first speaker is USER, the other one SYSTEM."""

import json
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.data.rendering.corpora import repaired
from m6rec_jax.data.rendering.dialogues import Turn, merged_turns
from m6rec_jax.data.rendering.texts import CorpusSpec, Text, write_corpus

_SPEAKERS = ("USER", "SYSTEM")


def build(raw: Mapping[str, Path], folder: Path) -> dict[str, int]:
    """Writes the corpus; counts what is left out."""
    path = raw["chitchat-dialogues"] / "dataset.json"
    conversations = json.loads(path.read_text("utf-8"))
    texts = []
    for name, conversation in conversations.items():
        messages = [message for turn in conversation["messages"] for message in turn]
        turns = merged_turns(Turn(one["sender"], one["text"]) for one in messages)
        senders = list(dict.fromkeys(sender for sender, _, _ in turns))
        if len(senders) == len(_SPEAKERS):
            said = tuple(f"{_SPEAKERS[senders.index(who)]}: {text}" for who, text, _ in turns)
            texts.append(Text(name, name, repaired(conversation.get("prompt") or ""), said))
    write_corpus(folder, CorpusSpec.load(folder), texts)
    return {"dialogues without two speakers left out": len(conversations) - len(texts)}
