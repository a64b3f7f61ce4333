"""`m6rec chat`: a dialogue with a model in a terminal, or line by line from a file.

Replies are printed as in the training dialogues; below them stand what was understood and the items
that are recommended, by generating their titles and by the two towers.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import gin

from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.dialogue.state import SYSTEM
from m6rec_jax.engine.programs.runtime import length_buckets
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.conversation import Answer, Conversation
from m6rec_jax.jobs.resources import Resources, ServiceOptions
from m6rec_jax.serving.conversations import open_conversation
from m6rec_jax.sharding import LogicalRules, make_mesh

HELP = "Say something; /new starts anew, /quit (or the end of input) ends."
_PROMPT = "> "
# What a request may say of a user.
_KNOWN = ("user", "history", "time", "statistics")


@gin.configurable(denylist=["user", "lines", "out"])
def chat(
    model_dir: str | Path = gin.REQUIRED,
    *,
    bank: str | None = None,
    prepared: str | None = None,
    titles: str = "",
    step: int | None = None,
    rules: LogicalRules | None = None,
    user: Path | None = None,
    lines: Iterable[str] | None = None,
    out: TextIO | None = None,
) -> Conversation:
    """Talks until the user ends it.

    Args:
      model_dir, bank, step: see `Service.open`.
      prepared, titles: see `open_conversation`.
      rules: logical-axis rules, by which the model lies over the mesh of `make_mesh` (gin); None:
        it is on the default device.
      user: JSON file with what is known of the user, see `known_user`; the prepared data must then
        be of users, items and events.
      lines: what the user says; None: standard input.
      out: where answers go; None: standard output.

    Returns:
      The conversation as it ended.

    Raises:
      CheckpointError: no model. ConfigError, DataError: as `open_conversation`; or the user's
        file is missing or wrong.
    """
    mesh = None if rules is None else make_mesh()
    model = load_with_bank(model_dir, bank=bank, step=step, mesh=mesh, rules=tuple(rules or ()))
    buckets = length_buckets(model.settings.source_length)
    resources = Resources(model, ServiceOptions(source_buckets=buckets))
    known = None if user is None else _read_user(user)
    conversation = open_conversation(resources, prepared, titles, known)
    out = out or sys.stdout
    print(HELP, file=out)
    for line in _typed(out) if lines is None else lines:
        text = line.strip()
        if text == "/quit":
            break
        if text == "/new":
            conversation.restart()
            print("(a new dialogue)", file=out)
        elif text.startswith("/"):
            print(HELP, file=out)
        elif text:
            print(_shown(conversation.answer(text)), file=out, flush=True)
    return conversation


def _read_user(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold an object, a request")
    for name in values:
        if name not in _KNOWN:
            raise ConfigError(
                f"what is known of the user has '{name}'{did_you_mean(name, _KNOWN)}: a dialogue "
                f"takes {', '.join(_KNOWN)}"
            )
    return values


def _typed(out: TextIO) -> Iterable[str]:
    """Lines of standard input, with a prompt where somebody types them."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is not UTF-8 is read as \ufffd; it would end the dialogue.
        sys.stdin.reconfigure(errors="replace")
    while True:
        if sys.stdin.isatty():
            print(_PROMPT, end="", file=out, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _shown(answer: Answer) -> str:
    lines = [f"{SYSTEM}: {answer.reply}"] if answer.reply else []
    if answer.understood:
        lines.append(f"  understood: {answer.understood}")
    for name, found in (("written", answer.written), ("retrieved", answer.retrieved)):
        if found is not None:
            lines.append(f"  {name}: {' · '.join(found.titles) or 'nothing is left'}")
    return "\n".join(lines) or "(nothing to say)"
