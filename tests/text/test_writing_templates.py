"""Texts about items: what is shared with liked ones, and what is left out."""

import itertools

import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.text.format_strings import Template
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import WritingTemplate, Written, common_values

SPEC = {
    "about": "{title}[, {genres}]",
    "prefix": "because",
    "text": "[By {shared_director}, like {shared_director_in}.]"
    "[ {shared_genres}, like {shared_genres_in}.][ {awards}]",
    "liked": "{title}",
}
PLAIN = {"event": "{title}", "candidate": "{title}", "item": "{title}"}


def parse(**sources):
    return WritingTemplate(**{name: Template.parse(text) for name, text in sources.items()})


def film(title, genres=(), director=None, awards=None):
    values = {"title": title, "genres": tuple(genres), "director": director, "awards": awards}
    return Item(title, values)


FARGO = film("Fargo", ["crime", "drama", "comedy"], "Coen", "Won 2.")
BLOOD = film("Blood Simple", ["crime"], "Coen")
HEAT = film("Heat", ["crime", "drama"], "Mann")
ALIEN = film("Alien", ["horror"], "Scott")


def written(item, liked, common=None):
    return parse(**SPEC).written(item, liked, common or {})


def test_the_liked_item_that_shares_most_is_named_then_the_latest():
    found = written(FARGO, [BLOOD, HEAT, ALIEN])
    assert found == Written(
        "By Coen, like Blood Simple. crime, drama, like Heat. Won 2.", ("Coen", "crime", "drama")
    )
    # Equal shares: the later one.
    other = film("Raising Arizona", ["crime"], "Coen")
    assert "like Raising Arizona." in written(FARGO, [BLOOD, other]).text


@pytest.mark.parametrize("liked", [[], [ALIEN], [FARGO], [BLOOD], [HEAT, BLOOD, ALIEN]])
def test_what_is_learnt_is_among_the_choices(liked):
    """Awards alone explain nothing, and an item does not explain itself."""
    template = parse(**SPEC)
    choices = template.choices(FARGO, template.liked_items(liked), {})
    texts = {" ".join(filter(None, some)) for some in itertools.product(*choices)}
    found = template.written(FARGO, liked, {})
    assert (found.text if found else "") in texts
    assert (found is None) == (BLOOD not in liked)
    if not liked:
        assert choices == [[""], [""], ["Won 2.", ""]]


def test_an_item_is_cited_for_nothing_that_it_has_not():
    """Director and genres are shared with different films, of which one is cited."""
    text = "[{shared_genres} again[ by {shared_director}], like {shared_genres_in}.]"
    template = parse(**SPEC | {"text": text})
    crime = film("Heat", ["crime"], "Mann")
    comedy = film("Hudsucker", ["comedy"], "Coen")
    fargo = film("Fargo", ["crime"], "Coen")
    (choices,) = template.choices(fargo, template.liked_items([crime, comedy]), {})
    assert choices == ["crime again, like Heat.", ""]
    both = film("Blood", ["crime"], "Coen")
    (choices,) = template.choices(fargo, template.liked_items([crime, both]), {})
    assert "crime again by Coen, like Blood." in choices
    assert "crime again by Coen, like Heat." not in choices


def test_a_column_whose_name_would_mean_the_item_is_refused():
    spec = {"text": "[Made in {shared_made_in}.]", "liked": "{title}"}
    with pytest.raises(ConfigError, match="shared_made_in"):
        parse(**spec).validate(["title", "made_in"])
    # There it means the item that shares the director, and nothing else could be meant.
    columns = ["title", "genres", "director", "awards"]
    parse(**SPEC).validate(columns)
    # A column that nobody asks for.
    spec = {"text": "[Made by {shared_made}.]"}
    parse(**spec).validate(["title", "made", "made_in"])


def test_what_most_items_have_explains_nothing():
    common = common_values([FARGO, BLOOD, HEAT, ALIEN], ("genres", "director"))
    assert common == {"genres": frozenset({"crime"}), "director": frozenset()}
    assert written(HEAT, [BLOOD], common) is None
    assert written(HEAT, [FARGO], common).features == ("drama",)


def test_texts_that_share_nothing_need_no_liked_item():
    template = parse(prefix="[{genres}: ]", text="{title}")
    assert template.written(ALIEN, [], {}) == Written("Alien", ())
    assert template.render_prefix(ALIEN) == "horror: "
    assert template.source(["profile"], ALIEN) == ["profile"]
    assert template.needs_item
    assert parse(text="[{shared_genres}]").needs_item
    assert not parse(text="{title}").needs_item


def test_a_data_sets_template_holds_it():
    spec = {**PLAIN, "writing": {"explanations": SPEC}}
    template = DatasetTemplate.parse(spec)
    assert DatasetTemplate.parse(template.to_spec()) == template
    assert "writing" not in DatasetTemplate.parse(PLAIN).to_spec()
    template.validate([], ["title", "genres", "director", "awards"])
    with pytest.raises(ConfigError, match=r"\{shared_director\}.*did you mean 'shared_directors'"):
        template.validate([], ["title", "genres", "directors", "awards"])


@pytest.mark.parametrize(
    ("writing", "message"),
    [
        ({"explanation": SPEC}, "explanation"),
        ({"titles": {"prefix": "x"}}, "text"),
        ({"titles": {"text": "x", "what": "y"}}, "what"),
        ({"explanations": {**SPEC, "liked": ""}}, "'liked' must say how"),
        ([], "object"),
    ],
)
def test_what_cannot_be_read_is_told(writing, message):
    with pytest.raises(ConfigError, match=message):
        DatasetTemplate.parse({**PLAIN, "writing": writing})
