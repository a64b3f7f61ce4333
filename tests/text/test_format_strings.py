import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.format_strings import Template, text_of
from m6rec_jax.text.vocabulary import Vocabulary


def render(source: str, **values: object) -> str:
    return Template.parse(source).render(values)  # type: ignore[arg-type]


def test_fields_and_clauses() -> None:
    source = "clicked {title}[ by {author}][ ({year}[, {country}])], {ago}"
    template = Template.parse(source)
    assert template.fields == ("title", "author", "year", "country", "ago")
    full = {"title": "Ran", "author": "Kurosawa", "year": 1985, "country": "Japan", "ago": "now"}
    assert template.render(full) == "clicked Ran by Kurosawa (1985, Japan), now"
    assert template.render(full | {"country": None}) == "clicked Ran by Kurosawa (1985), now"
    assert template.render(full | {"year": None}) == "clicked Ran by Kurosawa, now"
    assert template.render({"title": "Ran", "ago": "now"}) == "clicked Ran, now"
    # A clause of lost clauses is lost.
    source = "x[ (also [{a}][ and {b}])]"
    assert render(source) == "x"
    assert render(source, a="1") == "x (also 1)"
    assert render(source, b="2") == "x (also  and 2)"


@pytest.mark.parametrize("missing", [None, "", " \t", (), ("", ""), math.nan, np.float32("nan")])
def test_what_counts_as_missing(missing: object) -> None:
    assert render("a[ {x}]", x=missing) == "a"
    with pytest.raises(DataError, match=r"template 'text' needs a value for \{x\} \(character 3\)"):
        render("a {x}", x=missing)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is ", "as it is "),
        (3, "3"),
        (4.0, "4"),
        (19.99, "19.99"),
        (np.float32(19.99), "19.99"),
        (np.int64(7), "7"),
        (1234567.0, "1234567"),
        (0.00001234, "0.00001234"),
        (12345678.9, "12345678.9"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (("crime", "", "film-noir"), "crime, film-noir"),
    ],
)
def test_values_in_words(value: object, text: str) -> None:
    assert text_of(value) == text  # type: ignore[arg-type]


def test_text_that_a_vocabulary_makes_nothing_of_is_missing(model_file: str) -> None:
    vocabulary = Vocabulary(model_file)
    silent = ["\ufffd\ufffd", "\u200b", "\ufeff \x7f", " \t"]
    assert [text_of(text) for text in silent] == [""] * 4
    for code in {*range(1, 0x3000), *range(0xFE00, 0x10000)} - {0x85}:  # to Python, it is a space
        assert bool(text_of(chr(code))) == bool(vocabulary.encode(chr(code))), hex(code)


@given(st.text(min_size=1).filter(text_of))
def test_text_from_data_is_never_read_as_syntax(text: str) -> None:
    assert render("<{a}>[-{b}]", a=text, b=text) == f"<{text}>-{text}"


@given(st.text())
def test_escaped_text_comes_out_as_it_was(text: str) -> None:
    escaped = re.sub(r"([\[\]{}\\])", r"\\\1", text)
    assert Template.parse(escaped).render({}) == text


@given(st.text(alphabet="ab[]{}\\ "))
def test_any_source_parses_or_says_why(source: str) -> None:
    try:
        template = Template.parse(source)
    except ConfigError as error:
        position = re.search(r"character (\d+):", str(error))
        assert position
        assert 1 <= int(position[1]) <= len(source)
    else:
        values = dict.fromkeys(template.fields, "v")
        assert "\\" not in template.render(values).replace("\\", "", source.count("\\\\"))


@pytest.mark.parametrize(
    ("source", "position", "problem"),
    [
        ("liked {title} [by", 15, "never closed"),
        ("a [b {c} [d {e}]", 3, "never closed"),
        ("a] b", 2, "without a '['"),
        ("a} b", 2, "without a '{'"),
        ("a {b", 3, "never closed"),
        ("a {} b", 3, "field name"),
        ("a { b } c", 3, "field name"),
        ("a {b{c}}", 3, "field name"),
        ("a [b] c", 3, "without a field"),
        ("a \\n", 3, "backslash"),
        ("a \\", 3, "backslash"),
    ],
)
def test_errors_name_template_and_position(source: str, position: int, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        Template.parse(source, "event")
    assert f"template 'event', character {position}:" in str(error.value)
    assert problem in str(error.value)
