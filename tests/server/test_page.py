"""The page: its headers, the route by which it finds items, and what a person does with it."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from m6rec_jax.server import page
from m6rec_jax.server.access import Tokens
from m6rec_jax.server.app import make_app
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.service import Service
from tests import chromium
from tests.chromium import Browser
from tests.server.served import request
from tests.server.test_routes import post
from tests.serving.served_films import ITEMS

TOKEN = "t" * 16


def test_files_are_open_and_fetch_nothing_from_elsewhere(server: Server) -> None:
    client = TestClient(make_app(server, Tokens(read=TOKEN)))
    for name in page.FILES:
        found = client.get(f"/{name}")
        assert found.status_code == 200
        policy = dict(
            part.split(" ", 1) for part in found.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert found.headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r"https?://|innerHTML|outerHTML|document\.write", found.text)
    assert not re.findall(r"<script(?! src)|<style|\sstyle=|\son\w+=", client.get("/").text)
    assert client.get("/v1/items").status_code == 401


def test_items_are_found_by_id_and_by_words(client: TestClient) -> None:
    whole = client.get("/v1/items?limit=100").json()
    assert [item["id"] for item in whole["items"]] == [item.id for item in ITEMS]
    assert whole["num_items"] == len(ITEMS)
    assert whole["user_columns"] == {"taste": "string"}
    assert (whole["value"], whole["liked_at_least"]) == ("rating", 4)
    for item in ITEMS:
        title = str(item.attributes["title"])
        by_words = client.get("/v1/items", params={"query": title.upper(), "task": "ctr"}).json()
        assert {"id": item.id, "title": title} in by_words["items"]
    assert client.get("/v1/items?query=f3").json()["items"][0]["id"] == "f3"
    assert client.get("/v1/items?query=nothing+of+this").json()["items"] == []
    misspelt = client.get("/v1/items?query=flim+d").json()["items"]
    assert misspelt[0]["title"] == "Film D"
    assert len(client.get("/v1/items?limit=2").json()["items"]) == 2
    assert client.get("/v1/items?limit=101").status_code == 422
    assert client.get("/v1/items?task=ctx").status_code == 404
    assert client.get("/v1/items", params={"query": "a" * 201}).status_code == 422


def test_models_say_what_they_can_be_asked_for(client: TestClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models["ctr"]["jobs"] == ["likelihood", "scoring"]
    assert models["next"]["jobs"] == ["embeddings", "likelihood", "reranking", "retrieval"]
    assert models["titles"]["writing"] == "titles"
    assert models["ctr"]["data_set"] == "films"
    assert models["talk_replies"]["jobs"] == []


def test_debug_shows_what_was_read(
    client: TestClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    row = request(3) | {"task": "ctr"}
    assert client.post("/v1/score", json=row).json().get("debug") is None
    with caplog.at_level("DEBUG"):
        debug = client.post("/v1/score", json=row | {"debug": True}).json()["debug"]
    text: Any = service.accept(row, task="ctr").text  # type: ignore[union-attr]
    assert debug["read"] == [{"task": "ctr", "job": "scoring", **text._asdict()}]
    assert not any(line in caplog.text for line in text.history if len(line) > 8)
    both = post(client, "/v1/recommend", request(5) | {"k": 3, "debug": True})["debug"]
    assert [read["task"] for read in both["read"]] == ["next", "ctr"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium.CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def type_in(tab: Browser, selector: str, text: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).focus()")
    tab.call("Input.insertText", text=text)


def press(tab: Browser, selector: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def text_of(tab: Browser, selector: str) -> str:
    return str(tab.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def assert_fits(tab: Browser, width: int) -> None:
    """Nothing is wider than the window, and all text can be told from what is behind it."""
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(_FAINT) == []
    assert tab.run(_UNNAMED) == []


# Texts whose contrast is below 4.5 (WCAG 1.4.3).
_FAINT = """(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => [r, g, b].map((c) => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = numbers(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((node) => {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    if (!own || !node.checkVisibility()) return false;
    const [a, b] = [light(numbers(getComputedStyle(node).color)), light(behind(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((node) => node.outerHTML.slice(0, 100));
})()"""
# Fields and buttons without a name for screen readers.
_UNNAMED = """[...document.querySelectorAll("input, select, button")].filter((node) =>
  node.checkVisibility() && !node.getAttribute("aria-label") && !node.textContent.trim()
  && !(node.labels && node.labels.length)).map((node) => node.outerHTML)"""


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_a_person_ranks_and_reads_why(tab: Browser, address: str, width: int, dark: bool) -> None:
    tab.problems.clear()
    tab.resize(width, dark=dark)
    tab.call("Page.navigate", url=address)
    tab.wait("document.querySelector('#main:not([hidden])')")
    assert_fits(tab, width)
    type_in(tab, "#user-taste", "drama")
    # An item of the catalogue, found by words; and one that is markup.
    type_in(tab, "#history-search", str(ITEMS[3].attributes["title"]))
    tab.wait("document.querySelector('#history .found button')")
    press(tab, "#history .found button")
    assert tab.run("document.activeElement.id") == "history-search"
    markup = "<img src=x onerror=alert(1)>"
    tab.run("document.querySelector('#history details').open = true")
    type_in(tab, "#history-title", markup)
    type_in(tab, "#history-genre", "drama")
    press(tab, "#history .add-own")
    assert tab.run("document.querySelectorAll('#history .picked li').length") == 2
    press(tab, "#rank")
    tab.wait("document.querySelector('#results li')")
    assert text_of(tab, "#problem") == ""
    assert tab.run("document.querySelectorAll('#results li').length") == 10
    assert tab.run("document.activeElement.id") == "results-title"
    assert markup in text_of(tab, "#read")
    assert tab.run("document.images.length") == 0
    # The text about an item comes into its place, and knows what was liked.
    drama = json.dumps(
        [item.attributes["title"] for item in ITEMS if item.attributes["genre"] == "drama"]
    )
    place = tab.run(f"""[...document.querySelectorAll('#results li .title')]
        .findIndex((title) => {drama}.includes(title.textContent))""")
    row = f"#results li:nth-child({place + 1})"
    assert text_of(tab, f"{row} button") == "Why?"
    press(tab, f"{row} button")
    tab.wait("!document.querySelector('#results li [aria-disabled]')")
    assert text_of(tab, f"{row} .text") == "drama again"
    tab.run("document.getElementById('how-details').open = true")
    assert_fits(tab, width)
    # Candidates are ranked where a person adds some; without, the page says what is missing.
    tab.run("""document.querySelector('#how').selectedIndex =
        [...document.querySelector('#how').options].findIndex((o) => o.value.includes('score'));
        document.querySelector('#how').dispatchEvent(new Event('change'))""")
    press(tab, "#rank")
    tab.wait("document.querySelector('#problem').textContent")
    assert "Add candidates" in text_of(tab, "#problem")
    type_in(tab, "#candidates-search", "f5")
    tab.wait("document.querySelector('#candidates .found button')")
    press(tab, "#candidates .found button")
    press(tab, "#rank")
    tab.wait("document.querySelectorAll('#results li').length === 1")
    assert text_of(tab, "#results li .title") == ITEMS[5].attributes["title"]
    assert_fits(tab, width)
    if tab.run("!document.getElementById('chat').hidden"):
        type_in(tab, "#message", "Any drama?")
        press(tab, "#say button")
        tab.wait("!document.querySelector('#say [aria-disabled]')")
        assert text_of(tab, "#problem") == ""
        assert tab.run("document.querySelectorAll('#turns li').length") >= 2
        assert text_of(tab, "#greeting").startswith("Hello.")
    assert_fits(tab, width)
    assert tab.problems == []


def test_a_token_is_asked_for_and_kept(
    tab: Browser, server: Server, listen: Callable[[Any], str]
) -> None:
    tab.resize(360)
    tab.call("Page.navigate", url=listen(make_app(server, Tokens(read=TOKEN))))
    tab.wait("document.querySelector('#token-form:not([hidden])')")
    assert "token" in text_of(tab, "#problem")
    assert tab.run("document.activeElement.id") == "token"
    assert_fits(tab, 360)
    type_in(tab, "#token", "not the token")
    press(tab, "#token-form button")
    tab.wait("document.querySelector('#problem').textContent.includes('not the server')")
    type_in(tab, "#token", TOKEN)
    press(tab, "#token-form button")
    tab.wait("!document.getElementById('main').hidden")
    assert text_of(tab, "#problem") == ""
    assert tab.run("sessionStorage.length") == 1
    assert tab.run("localStorage.length + document.cookie.length") == 0
