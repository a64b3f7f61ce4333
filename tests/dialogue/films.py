"""Twelve films with attributes, and how people speak of films: the words of the example."""

import gin

from m6rec_jax.dialogue.catalogue import DialogueCatalogue
from m6rec_jax.dialogue.reading import DialogueReader
from m6rec_jax.dialogue.replies import ReplyGrammar
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.text.records import Item

_ROWS = [
    ("Fargo", 1996, "crime, drama", "Joel Coen, Ethan Coen", "Frances McDormand", "United States"),
    ("Heat", 1995, "crime, action", "Michael Mann", "Al Pacino, Robert De Niro", "United States"),
    ("Heat", 1986, "action", "Dick Richards", "Burt Reynolds", "United States"),
    ("Alien", 1979, "horror, sci-fi", "Ridley Scott", "Sigourney Weaver", "United Kingdom"),
    ("Big", 1988, "comedy, romance", "Penny Marshall", "Tom Hanks", "United States"),
    ("Toy Story", 1995, "animation, children's, comedy", "John Lasseter", "Tom Hanks", ""),
    ("Babe", 1995, "children's, comedy, drama", "Chris Noonan", "Magda Szubanski", "Australia"),
    ("Casper", 1995, "children's, horror", "Brad Silberling", "Christina Ricci", "United States"),
    ("The Kid", 1921, "comedy, drama", "Charlie Chaplin", "Charlie Chaplin", "United States"),
    ("Mask, The", None, "comedy, crime", "", "Cher", "United States"),
    ("That Thing You Do!", 1996, "comedy, drama", "Tom Hanks", "Liv Tyler", "United States"),
    ("1900", 1976, "drama, war", "Bernardo Bertolucci", "Robert De Niro", "Italy"),
]


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(", ")))


ITEMS = [
    Item(
        f"f{number}",
        {
            "title": title,
            "year": year,
            **dict(zip(("genres", "director", "cast", "country"), map(_list, lists), strict=True)),
        },
    )
    for number, (title, year, *lists) in enumerate(_ROWS)
]
NAMES = [str(item.attributes["title"]) for item in ITEMS]
TITLES = [
    str(item.attributes["title"])
    + (f" ({item.attributes['year']})" if item.attributes["year"] else "")
    for item in ITEMS
]


def film_words() -> DialogueWords:
    """Those of the gin file."""
    gin.parse_config_file("gin_configs/dialogue/films.gin")
    words = DialogueWords()
    gin.clear_config()
    return words


CATALOGUE = DialogueCatalogue(ITEMS, NAMES, film_words(), TITLES)
READER = DialogueReader(CATALOGUE)
GRAMMAR = ReplyGrammar(CATALOGUE)
