"""A small vocabulary trained once for all tests of this floor."""

import pytest

from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary

TITLES = (
    "Star Wars (1977)",
    "The Empire Strikes Back (1980)",
    "Fargo (1996)",
    "Mr. Holland's Opus (1995)",
    "L.A. Confidential (1997)",
    "The Good, the Bad and the Ugly (1966)",
    "A Fish Called Wanda (1988)",
    "Wings of Desire (1987)",
)
OUTCOMES = ("loved", "liked", "thought okay", "disliked")


@pytest.fixture(scope="session")
def behaviours() -> list[str]:
    return [
        f"{OUTCOMES[(i + j) % 4]} {title}, {('comedy', 'drama', 'sci-fi')[(i * j) % 3]}, "
        f"{i + 2} {('days', 'weeks', 'hours')[j % 3]} ago"
        for i in range(40)
        for j, title in enumerate(TITLES)
    ] + [f"{age} year old {job}" for age in range(18, 70) for job in ("writer", "student", "nurse")]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory, behaviours: list[str]) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "phrases.model"
    train_vocabulary(behaviours, path, 700, keep_apart=OUTCOMES)
    return str(path)


@pytest.fixture(scope="session")
def vocab(model_file: str) -> Vocabulary:
    return Vocabulary(model_file)
