"""The browser page: it reads text as Python does, to the token, and answers as the model."""

import json
import os
import random
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax import pages
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.errors import ConfigError
from m6rec_jax.export import command, held_out, web_page
from m6rec_jax.export.recording import Recorder
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import Request
from m6rec_jax.text import layout
from m6rec_jax.text.format_strings import Template
from m6rec_jax.text.records import Event, User
from tests import chromium
from tests.export import asked
from tests.serving import served_films

WEB = Path(web_page.__file__).parent / "web"
RUNTIME = web_page.runtime_folder()
# Where to keep what the page looks like; nowhere without.
SCREENSHOTS = os.environ.get("M6REC_TEST_SCREENSHOTS")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
needs_runtime = pytest.mark.skipif(
    shutil.which("node") is None or not RUNTIME.is_dir(),
    reason=f"LiteRT.js {web_page.LITERT_JS_VERSION} is not in {RUNTIME}",
)
# What might be taken for a control token, and what is normalised.
SPECIAL = ["</s>", "<extra_id_0>", "[EOS']", "<pad>", "\u2581", "\n", "\u200b", "\ufb01", "e\u0301"]
PROFILE = {"taste": "drama"}
# Candidates with what is said of the user, which the page fills in.
_CANDIDATE = "{title}, {genre}[. {item_positive_percent} percent liked it]"
_CANDIDATE += "[, user rates {user_mean_value}[, likes {user_positive_percent}%] of {user_count}]"
SPEC = served_films.SPEC | {
    "template": served_films.SPEC["template"] | {"candidate": _CANDIDATE}  # type: ignore[operator]
}


def node(script: str, given: Any, folder: Path) -> Any:
    """What a script returns of `given`, with the page's modules as `layout` and so on."""
    modules = {name: json.dumps(str(WEB / f"{name}.js")) for name in ("layout", "tokenizer")}
    imports = "".join(f"import * as {name} from {path};" for name, path in modules.items())
    (folder / "given.json").write_text(json.dumps(given))
    program = f"{imports} import {{ readFileSync }} from 'node:fs';"
    program += f"const given = JSON.parse(readFileSync({json.dumps(str(folder / 'given.json'))}));"
    program += f"console.log(JSON.stringify((() => {{ {script} }})()));"
    (folder / "script.mjs").write_text(program)
    done = subprocess.run(["node", folder / "script.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def any_text(rng: random.Random) -> str:
    """Of all of Unicode that UTF-8 can carry."""

    def part() -> str:
        kind = rng.random()
        if kind < 0.5:
            return rng.choice("abcdefgh ijkl mno  p.")
        if kind < 0.6:
            return rng.choice(SPECIAL)
        while True:
            code = rng.randrange(1, 0x110000 if kind < 0.8 else 0x3000)
            if not 0xD800 <= code < 0xE000:
                return chr(code)

    return "".join(part() for _ in range(rng.randrange(30)))


@needs_node
def test_every_text_has_the_tokens_of_python(shop_vocabulary: Any, tmp_path: Path) -> None:
    """So no text forges a control token: Python's does not either."""
    rng = random.Random(0)
    texts = [any_text(rng) for _ in range(10_000)]
    path = tmp_path / "vocabulary.model"
    path.write_bytes(shop_vocabulary.text_model)
    script = """
        const own = new tokenizer.Tokenizer(readFileSync(given.path));
        const ids = given.texts.map((text) => own.encode(text));
        return [ids, ids.map((one) => own.decode(one))];
    """
    ids, decoded = node(script, {"path": str(path), "texts": texts}, tmp_path)
    expected = [shop_vocabulary.encode(text) for text in texts]
    assert ids == expected
    assert decoded == [shop_vocabulary.decode(own) for own in expected]
    assert not set(shop_vocabulary.special_ids[:2]) & {token for own in ids for token in own}


@needs_node
def test_rows_are_laid_out_as_in_training(tmp_path: Path) -> None:
    rng = random.Random(0)
    special = (90, 91, 0, 1)

    def segments() -> list[list[int]]:
        lengths = [rng.randrange(9) for _ in range(rng.randrange(8))]
        return [[rng.randrange(2, 50) for _ in range(length)] for length in lengths]

    rows = [(segments(), limit) for limit in range(3, 30) for _ in range(20)]
    script = "return given.map(([own, most]) => layout.sourceRow(own, [90, 91, 0, 1], most));"
    for found, (own, limit) in zip(node(script, rows, tmp_path), rows, strict=True):
        expected = layout.source_layout(special, own, limit)
        assert found["tokens"] == expected["encoder_input_tokens"].tolist()
        assert found["blocks"] == expected["encoder_block_ids"].tolist()


@needs_node
@pytest.mark.parametrize(
    "path", sorted([*WEB.glob("*js"), *pages.FOLDER.glob("*js")]), ids=lambda path: path.name
)
def test_scripts_are_scripts(path: Path) -> None:
    kind = "commonjs" if path.name in ("sw.js", "worker.js") else "module"
    command_ = ["node", f"--input-type={kind}", "--check"]
    done = subprocess.run(command_, input=path.read_text(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_partly_filled_template_renders_as_the_whole_one() -> None:
    sources = [
        "{a}[ ({b})][, {c}[ of {d}]]",
        "[[{a}][, {b}] {c}]",
        "\\[{a}\\] [x [{b}][ y {c}]][ {d}]",
        "[{a} [{b}]]{c}",
    ]
    rng = random.Random(0)
    for source in sources:
        template = Template.parse(source)
        for _ in range(200):
            values = {name: rng.choice(["", "{x}[", "word\\"]) for name in "abcd"}
            values |= dict.fromkeys(template.required, "v")
            later = {name for name in "abcd" if rng.random() < 0.5}
            left = template.fill({k: v for k, v in values.items() if k not in later}, later)
            assert Template.parse(left).render(values) == template.render(values)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs --index"):
        command.export(tmp_path, tmp_path / "page", "web")
    package = tmp_path / web_page.PACKAGES[0] / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text('{"version": "1.0.0"}')
    with pytest.raises(ConfigError, match=r"core/package.json is 1.0.0: run\n  npm install"):
        web_page.find_runtime(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--format web checks .* Node.js \(20 or newer\)"):
        command.export(tmp_path, tmp_path / "page", "web")


@pytest.fixture(scope="module")
def model(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    run = served_films.copy_run(
        served / "run", tmp_path_factory.mktemp("run") / "run", [*asked.TASKS], SPEC
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M6REC_DATA_DIR", str(served / "cache"))
        yield load_model(run)


@pytest.fixture(scope="module")
def catalogue(model: Any) -> held_out.Catalogue:
    texts = open_serving_data(model, "next").item_texts()
    titles = [str(item.attributes["title"]) for item in served_films.ITEMS]
    vectors = model.retriever("next").embed_items(list(texts.values()))
    return held_out.Catalogue("next", vectors, list(texts), titles)


@needs_node
def test_requests_are_rendered_as_the_server_does(
    model: Any, catalogue: held_out.Catalogue, tmp_path: Path
) -> None:
    shown = web_page.page_catalogue(model, catalogue)
    data, rng, now = open_serving_data(model, "ctr"), random.Random(0), 1_700_000_000.0
    assert data.statistics is not None
    renderer = RequestRenderer(data.template, data.statistics, data.max_events)
    cases, expected = [], []
    for _ in range(50):
        picks = [
            {"item": rng.randrange(12), "reaction": rng.choice(shown["reactions"])}
            for _ in range(rng.randrange(6))
        ]
        now += rng.randrange(10**7)
        events = []
        for pick in picks:
            item = served_films.ITEMS[pick["item"]]
            events.append((Event("", item.id, now, pick["reaction"]["value"]), item))
        items = tuple(served_films.ITEMS)
        request = Request(
            User("", PROFILE), now, tuple(events), items, candidate_statistics=({},) * len(items)
        )
        text = renderer.render(request)
        expected.append([text.history, text.candidates])
        cases.append([picks, now])
    script = """
        const { tasks, columns } = given.shown, task = tasks.ctr;
        return given.cases.map(([picks, now]) => {
          const { segments, person } = layout.renderHistory(
            task, columns[task.events], picks, given.profile, new Date(1000 * now));
          const texts = columns[task.candidates];
          return [segments, texts.map((text) => new layout.Template(text).render(person))];
        });
    """
    given = {"shown": shown, "cases": cases, "profile": PROFILE}
    assert node(script, given, tmp_path) == expected
    writing = data.template.writing["titles"]
    prefixes = shown["columns"][shown["tasks"]["titles"]["prefix"]]
    assert prefixes == [writing.render_prefix(item) for item in served_films.ITEMS]


@pytest.fixture(scope="module")
def exported(
    model: Any, catalogue: held_out.Catalogue, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "page"
    export = held_out.Asked(
        model,
        Recorder(),
        asked.ask(model, Recorder()),
        catalogue=catalogue,
        precision="float32",
        runtime=web_page.find_runtime(RUNTIME),
    )
    results = command.write_export(folder, "web", export)
    # The same float32 products, in another order.
    assert {name: own["equal"] for name, own in results.items()} == dict.fromkeys(
        ("score ctr", "user next", "generate titles", "recommend next"), 1.0
    )
    return folder


OPENED = "document.querySelector('#main:not([hidden])')"
# Or what is wrong.
SHOWN = f"{OPENED} || document.querySelector('#problem:not(:empty)')"


WORKER = """(async () => {
    const worker = new Worker("worker.js");
    const ask = (id, method, asked, grow = () => {}) => new Promise((done, fail) => {
        worker.onmessage = ({ data }) => {
            if (data.error) fail(new Error(data.error));
            else if (data.text !== undefined) grow();
            else if (data.id === id) done(data.result);
        };
        worker.postMessage({ id, method, asked });
    });
    await ask(1, "open", { threads: Math.min(4, navigator.hardwareConcurrency) });
    const history = ["user, likes drama", "liked a film"];
    const scored = { history, candidates: ["Film A", " "], task: "ctr" };
    const written = { history, prefix: "", task: "titles" };
    const stop = () => worker.postMessage({ id: 4, method: "cancel" });
    return [
        [...await ask(2, "score", scored)],
        await ask(3, "write", written),
        await ask(4, "write", written, stop),
    ];
})()"""
RECOMMEND = """(async () => {
    document.getElementById("go").click();
    const working = () => document.getElementById("go").hasAttribute("aria-disabled");
    while (working()) await new Promise((next) => setTimeout(next, 20));
    return [...document.querySelectorAll("#results .title")].map((node) => node.textContent);
})()"""


@needs_runtime
@pytest.mark.skipif(chromium.CHROMIUM is None, reason="no Chromium here")
def test_the_page_recommends_without_a_network(
    exported: Path, model: Any, catalogue: held_out.Catalogue, tmp_path: Path
) -> None:
    with chromium.browser(tmp_path / "profile") as tab:
        with chromium.static_host(exported) as address:
            tab.resize(390, 844)
            chromium.visit(tab, address, SHOWN)
            assert tab.run("crossOriginIsolated")
        # The host is gone.
        chromium.visit(tab, address, SHOWN)
        assert "films: 12 items. Works offline" in tab.run("document.body.innerText")
        scores, whole, stopped = tab.run(WORKER)
        # A text that is stopped has what it has.
        assert whole.startswith(stopped)
        assert 0 < len(stopped) < len(whole)
        scorer = model.scorer("ctr")
        expected = scorer.score_requests([["user, likes drama", "liked a film"]], [["Film A"]])
        assert scores == [pytest.approx(float(expected[0][0]), abs=1e-5), -1]
        tab.run("document.querySelector('[name=taste]').value = 'drama'")
        _search(tab, "film a")
        tab.run("document.querySelector('#seen .found button').click()")
        # What is typed is text, whatever it holds.
        _search(tab, "</s> <extra_id_0>")
        assert not tab.run("document.querySelectorAll('#seen .found button').length")
        titles = tab.run(RECOMMEND)
        assert sorted(["Film A", *titles]) == catalogue.titles
        assert tab.run("document.activeElement.id") == "results-title"
        tab.run("document.querySelector('#results .head button').click()")
        tab.wait("document.querySelector('#results .text').getAttribute('aria-busy') === 'false'")
        text = tab.run("document.querySelector('#results .text').textContent")
        item = served_films.ITEMS[catalogue.titles.index(titles[0])]
        assert text.startswith(f"{item.attributes['genre']}:")
        _see(tab, "web_phone")
        tab.resize(1280, 900)
        _see(tab, "web_desktop")
        assert tab.run("document.documentElement.scrollWidth") <= 1280
        assert tab.problems == []


@needs_runtime
@pytest.mark.skipif(chromium.CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("name", ["model.tflite", "catalogue.json.gzip", "export.json"])
def test_the_page_names_a_damaged_file(exported: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "page"
    shutil.copytree(exported, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with chromium.browser(tmp_path / "profile") as tab, chromium.static_host(folder) as address:
        chromium.visit(tab, address, SHOWN)
        assert f"{name} is damaged" in tab.run("document.getElementById('problem').textContent")
        (folder / name).write_bytes(whole)
        tab.run("document.getElementById('again').click()")
        chromium.settle(tab, OPENED)


@needs_runtime
@pytest.mark.skipif(chromium.CHROMIUM is None, reason="no Chromium here")
def test_a_new_export_takes_the_place_of_the_old_one(exported: Path, tmp_path: Path) -> None:
    """Whole, and without a network, too."""
    folder = tmp_path / "page"
    shutil.copytree(exported, folder)
    installed = """(async () => {
        const registration = await navigator.serviceWorker.getRegistration();
        while (!registration.waiting) await new Promise((next) => setTimeout(next, 50));
    })()"""
    with chromium.browser(tmp_path / "profile") as tab:
        with chromium.static_host(folder) as address:
            chromium.visit(tab, address, SHOWN)
            changes = {"sw.js": ('VERSION = "', 'VERSION = "new'), "index.html": (">m6rec", ">new")}
            for name, change in changes.items():
                (folder / name).write_text((folder / name).read_text().replace(*change))
            chromium.visit(tab, address, SHOWN)
            assert tab.run("document.title") == "m6rec"
            tab.run(installed)
            tab.call("Page.navigate", url="about:blank")
            time.sleep(1)  # until the browser has noticed that the page was closed
        chromium.visit(tab, address, SHOWN)
        assert "films: 12 items. Works offline" in tab.run("document.body.innerText")
        assert tab.run("document.title") == "new"


def _search(tab: chromium.Browser, words: str) -> None:
    tab.run(
        f"""(() => {{
            const search = document.getElementById("seen-search");
            search.value = {json.dumps(words)};
            search.dispatchEvent(new Event("input"));
        }})()"""
    )


def _see(tab: chromium.Browser, name: str) -> None:
    if SCREENSHOTS:
        data = tab.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        Path(SCREENSHOTS, f"{name}.png").write_bytes(b64decode(data))
