"""Human dialogues in turns, as a corpus: the first speaker is USER, the other one SYSTEM."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m6rec_jax.data.corpora import CORPUS_FILE, CorpusSpec, Text, repaired, write_corpus
from m6rec_jax.data.sources import (
    FileRoute,
    PackageRoute,
    PublicDataset,
    Source,
    register_dataset,
)
from m6rec_jax.errors import DataError

SPEAKERS = ("USER", "SYSTEM")
_SHA256 = "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"

DIALOGUES = Source(
    name="chitchat-dialogues",
    title="Chit-Chat dialogues (Perception, Control and Cognition Lab, Brigham Young University)",
    licence="MIT",
    terms=(
        "Keep the licence with copies. Cite Myers, Etchart and Fulda, 'Conversational "
        "Scaffolding: An Analogy-Based Approach to Response Prioritization in Open-Domain "
        "Dialogs', ICAART 2020."
    ),
    routes=(
        FileRoute(
            "https://raw.githubusercontent.com/BYU-PCCL/chitchat-dataset/master/"
            "chitchat_dataset/dataset.json",
            _SHA256,
        ),
        PackageRoute(
            "chitchat-dataset",
            "0.9.0",
            "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            {"chitchat_dataset/dataset.json": _SHA256},
        ),
    ),
)


def turns_of(messages: Any) -> list[str]:
    """The turns of a dialogue, "USER: ..." and "SYSTEM: ..."; empty ones are left out.

    Args:
      messages: turns as lists of messages, each with a sender and a text. Turns of one speaker that
        follow each other are joined.

    Returns:
      The turns; none where it has not two speakers.

    Raises:
      KeyError, TypeError: the messages have another form.
    """
    speakers: dict[str, str] = {}
    turns: list[tuple[str, str]] = []
    for message in (message for turn in messages for message in turn):
        text = repaired(message["text"])
        if not text:
            continue
        if message["sender"] not in speakers:
            if len(speakers) == len(SPEAKERS):
                return []
            speakers[message["sender"]] = SPEAKERS[len(speakers)]
        name = speakers[message["sender"]]
        if turns and turns[-1][0] == name:
            text = f"{turns.pop()[1]} {text}"
        turns.append((name, text))
    return [f"{name}: {text}" for name, text in turns] if len(speakers) == len(SPEAKERS) else []


def build(sources: Mapping[str, Path], folder: Path) -> str:
    """Writes the corpus; returns a line about it and what was left out."""
    path = sources[DIALOGUES.name] / "dataset.json"
    left_out: Counter[str] = Counter()
    texts = []
    try:
        conversations = json.loads(path.read_text("utf-8"))
        for name, conversation in conversations.items():
            turns = turns_of(conversation["messages"])
            if turns:
                about = repaired(conversation.get("prompt") or "")
                texts.append(Text(name, name, about, tuple(turns)))
            else:
                left_out["without two speakers"] += 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not hold these dialogues ({error})") from error
    spec = CorpusSpec(
        name="chitchat",
        id="dialogue_id",
        group="dialogue_id",
        text="turns",
        has_turns=True,
        about="prompt",
        description=f"{len(texts):,} human dialogues",
        licence=DIALOGUES.licence,
        provenance={"left_out": dict(left_out)},
    )
    write_corpus(folder, spec, texts)
    num_turns = sum(len(text.parts) for text in texts)
    missing = ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "none"
    return f"chitchat: {len(texts):,} dialogues, {num_turns:,} turns; left out: {missing}"


DATASET = register_dataset(
    PublicDataset(
        name="chitchat",
        description="human dialogues in turns",
        sources=(DIALOGUES,),
        build=build,
        spec_file=CORPUS_FILE,
    )
)
