"""Twenty turns in a person's words with a run of `m6rec demo`, by the plain command.

    m6rec demo
    python -m benchmarks.chat_example runs/demo/retrieval

Writes `docs/chat_example.md`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.provenance import ROOT

TURNS = (
    "Hello!",
    "I loved Star Wars and The Empire Strikes Back.",
    "Anything else?",
    "Not that old.",
    "Something funny, please.",
    "Is it any good?",
    "I have seen it.",
    "What is it about?",
    "Why do you recommend it?",
    "Something like Pulp Fiction?",
    "No war, maybe a romance from the 90s.",
    "With Tom Hanks?",
    "Who directed it?",
    "Anything goes.",
    "Now something for my kids.",
    "They have seen that one.",
    "An older one, perhaps.",
    "What year is it from?",
    "Thanks, that sounds good!",
    "Bye.",
)
PAGE = ROOT / "docs" / "chat_example.md"
HEAD = """<!-- Written by `python -m benchmarks.chat_example`. Change that, not this file. -->
# A dialogue with the demo's model

Twenty turns, typed into `m6rec chat --gin.MODEL_DIR=runs/demo/retrieval` after `m6rec demo`.
Nothing is left out.

```
"""


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    (run,) = arguments
    command = [sys.executable, "-m", "m6rec_jax.cli", "chat", f"--gin.MODEL_DIR={Path(run)}"]
    typed = "\n".join(TURNS) + "\n"
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=True)
    # Each turn's answer begins with what the system says.
    _, *answers = done.stdout.split("SYSTEM: ")
    pairs = zip(TURNS, answers, strict=True)
    PAGE.write_text(HEAD + "".join(f"> {t}\nSYSTEM: {a}" for t, a in pairs) + "```\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
