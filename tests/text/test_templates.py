import json
from typing import Any

import pytest

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.records import Event, Item, User
from m6rec_jax.text.templates import DatasetTemplate

NOW = 881_250_949.0  # Thursday 4 December 1997, 15:55:49 UTC
SPEC: dict[str, Any] = json.loads("""
{"profile": "[{age} year old ][{occupation}][, rated {user_num_ratings} films]",
 "event": "[{outcome} ]{title} ({year})[, {genres}][, {ago}]",
 "context": "{weekday} {part_of_day}, {date}[, in {place}]",
 "candidate": "{title} ({year})[, {genres}][. {item_positive_percent} percent liked it]",
 "item": "{title} ({year})[, {genres}]",
 "outcomes": [{"at_least": 5, "text": "loved"}, {"at_least": 4, "text": "liked"},
              {"at_least": 3, "text": "thought okay"}, {"text": "disliked"}]}
""")
USER = User("7", {"age": 24, "occupation": "writer"})
FARGO = Item("100", {"title": "Fargo", "year": 1996, "genres": ("crime", "drama")})
PLAIN = Item("101", {"title": "[EOS] {year}", "year": 1990, "genres": ()})
ITEMS = {item.id: item for item in (FARGO, PLAIN)}


@pytest.fixture
def template() -> DatasetTemplate:
    return DatasetTemplate.parse(SPEC)


def test_exact_text(template: DatasetTemplate) -> None:
    events = [
        Event("7", "101", NOW - 400 * 86400, 2.0),
        Event("7", "100", NOW - 19 * 60, 5.0),
        Event("7", "100", NOW, None),
    ]
    statistics = {"user_num_ratings": "about 250", "place": "Lisbon"}
    assert template.history_segments(USER, events, ITEMS, NOW, statistics) == [
        "24 year old writer, rated about 250 films",
        "disliked [EOS] {year} (1990), 13 months ago",
        "loved Fargo (1996), crime, drama, 19 minutes ago",
        "Fargo (1996), crime, drama, just now",
        "Thursday afternoon, 4 December 1997, in Lisbon",
    ]
    assert template.candidate(FARGO, {"item_positive_percent": "72"}) == (
        "Fargo (1996), crime, drama. 72 percent liked it"
    )
    assert template.candidate(FARGO) == template.item(FARGO) == "Fargo (1996), crime, drama"


@pytest.mark.parametrize(
    ("value", "words"),
    [(5, "loved"), (4.5, "liked"), (4, "liked"), (3, "thought okay"), (-1, "disliked"), (None, "")],
)
def test_outcome_words(template: DatasetTemplate, value: float | None, words: str) -> None:
    assert template.outcome(value) == words


def test_profile_and_context_keep_their_places_when_empty() -> None:
    spec = {"event": "[{genres}]", "candidate": "{title}", "item": "{title}"}
    template = DatasetTemplate.parse(spec)
    events = [Event("7", "101", 1.0), Event("7", "100", 2.0)]
    assert template.history_segments(USER, events, ITEMS, NOW) == ["", "crime, drama", ""]


def test_the_future_is_refused(template: DatasetTemplate) -> None:
    with pytest.raises(DataError, match="may only hold the past"):
        template.event(Event("7", "100", NOW + 1, 5), FARGO, NOW)
    assert template.event(Event("7", "100", NOW + 1, 5), FARGO, None).startswith("loved Fargo")


def test_history_errors(template: DatasetTemplate) -> None:
    untitled = Item("5", {"year": 1990})
    with pytest.raises(DataError, match=r"item '5': template 'item' needs a value for \{title\}"):
        template.item(untitled)
    with pytest.raises(DataError, match="not a time in unix seconds"):
        template.context(1e18)


USERS, ITEMS_HAVE = ["age", "occupation"], ["title", "year", "genres"]
STATISTICS = ["user_num_ratings", "item_positive_percent", "place"]


@pytest.mark.parametrize(
    ("items", "statistics", "change", "message"),
    [
        (ITEMS_HAVE, STATISTICS[1:], {}, r"'profile', character \d+: .*user_num_ratings"),
        (ITEMS_HAVE[:2], STATISTICS, {}, r"'event', .*\{genres\}.*ago, outcome, title, year"),
        ([*ITEMS_HAVE, "ago"], STATISTICS, {}, "column 'ago'"),
        (ITEMS_HAVE, STATISTICS, {"outcomes": []}, "'outcomes' is empty"),
    ],
)
def test_validate(template: DatasetTemplate, items, statistics, change, message) -> None:
    assert DatasetTemplate.parse(json.loads(json.dumps(template.to_spec()))) == template
    template.validate(USERS, ITEMS_HAVE, STATISTICS)
    with pytest.raises(ConfigError, match=message):
        DatasetTemplate.parse(SPEC | change).validate(USERS, items, statistics)


@pytest.mark.parametrize(
    ("change", "keyword"),
    [
        ({"evnt": "x"}, "evnt"),
        ({"event": "{title"}, "shop.json.*character 1"),
        ({"event": 5}, "event"),
        ({"outcomes": "liked"}, "liked"),
        ({"outcomes": [{"at_least": 4}]}, "text"),
        ({"outcomes": [{"at_least": 4, "text": " "}]}, "text"),
        ({"outcomes": [{"at_least": "4", "text": "x"}]}, "at_least"),
        ({"outcomes": [{"text": "x"}, {"at_least": 4, "text": "y"}]}, "outcome 1"),
        ({"outcomes": [{"at_least": n, "text": "x"} for n in (3, 4)]}, "4 comes after 3"),
    ],
)
def test_broken_specs(change: dict[str, object], keyword: str) -> None:
    with pytest.raises(ConfigError, match=keyword):
        DatasetTemplate.parse(SPEC | change, "shop.json")
