"""Small dialogues of our own in the forms of INSPIRED and ReDial."""

import json
from pathlib import Path

HEADER = ("dialog_id", "utt_id", "speaker", "turn_id", "text", "movies", "genres")
FILMS = ("Fargo (1996)", "Heat (1995)", "Alien (1979)", "Big (1988)")


def inspired_rows(number: int) -> list[tuple[str, str, str]]:
    """(speaker, text, movies) of a dialogue that says the same things about other films."""
    first, second, third = (FILMS[(number + k) % 4] for k in range(3))
    return [
        ("RECOMMENDER", "Hello.", ""),
        ("RECOMMENDER", "What do you like?", ""),
        ("SEEKER", f"I liked {first}", first),
        ("RECOMMENDER", f"Then try {second} or {third}", f"{second};  {third}"),
        ("SEEKER", "QUOTATION_MARKNoQUOTATION_MARK", ""),
        ("RECOMMENDER", f"As you liked {first}, see {first} again", first),
    ]


def write_inspired(path: Path, numbers: range) -> Path:
    lines = ["\t".join(HEADER)]
    for number in numbers:
        for place, (speaker, text, movies) in enumerate(inspired_rows(number)):
            fields = (f"d{number}", str(place), speaker, "1", text, movies, "")
            lines.append("\t".join(fields))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def redial(number: int, **changes: object) -> dict[str, object]:
    """A dialogue as ReDial has it: films are numbers in the text."""
    return {
        "conversationId": str(number),
        "initiatorWorkerId": 7,
        "respondentWorkerId": 9,
        "movieMentions": {"11": FILMS[0], "111": FILMS[1]},
        "messages": [
            {"senderWorkerId": 7, "text": "Hi, I liked @111 &amp; @11", "timeOffset": 0},
            {"senderWorkerId": 9, "text": "See @11!", "timeOffset": 1},
            {"senderWorkerId": 9, "text": " ", "timeOffset": 2},
            {"senderWorkerId": 9, "text": "Mail me @12 or at a@b", "timeOffset": 3},
        ],
    } | changes


def write_redial(path: Path, dialogues: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in dialogues), "utf-8")
    return path


def write_inspired_folder(folder: Path, number: int = 60) -> Path:
    """A data set folder of one file, all parts drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    write_inspired(folder / "dev.tsv", range(number))
    spec = {"name": "talks", "format": "inspired", "files": "dev.tsv"}
    (folder / "dialogues.json").write_text(json.dumps(spec))
    return folder
