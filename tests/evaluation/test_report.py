"""The report: everything shown, everything escaped, nothing fetched."""

import html.parser
import re

import numpy as np
import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.evaluation import report_figures
from m6rec_jax.evaluation.report import (
    Comparison,
    Example,
    ParameterGroup,
    ReportData,
    Text,
    render_report,
)

HOSTILE = """<script>alert("1")</script> & 'x' $y$ "><img src=x onerror=alert(1)>"""
RANKS = np.array([[1, 0], [4, 30], [2, 9]])
VOID = {"meta", "br", "img", "link", "input", "hr"}


def full(word: str = "a word") -> ReportData:
    """A report with every part, and `word` wherever text from data goes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    probabilities = np.clip(0.3 + 0.3 * labels + 0.1 * rng.normal(size=400), 0, 1)
    scores = {"this model": probabilities, f"mean {word}": rng.normal(size=400) + labels}
    return ReportData(
        title=f"T {word}",
        summary=f"S {word}",
        comparisons=[
            Comparison("like?", f"AUC {word}", 0.79, {"popularity": 0.66, f"mean {word}": 0.73}),
            Comparison("sure?", "log loss", 0.58, {"popularity": 0.65}, False),
        ],
        figures=[
            report_figures.curve(f"pretraining {word}", range(50), np.linspace(3, 2, 50).tolist()),
            report_figures.curve("tuning", [1, 2], [0.7, 0.6]),
            report_figures.hit_rates("", {"this model": RANKS, f"popular {word}": RANKS + 3}, 20),
            report_figures.roc_curves("", labels, scores),
            *report_figures.calibration("", labels, probabilities),
        ],
        examples=[
            Example(
                f"User {word}",
                [Text(f"profile {word}", f"note {word}")],
                [Text(f"top {word}", "0.875", 0.9, is_hit=True), Text("b", "0.5")],
                [Text(f"wanted {word}")],
            )
        ],
        parameters=[
            ParameterGroup(f"encoder {word}", 99_000, False),
            ParameterGroup("p", 1000, True),
        ],
        facts={f"fact {word}": f"value {word}"},
        notes=[f"N {word}"],
    )


class Page(html.parser.HTMLParser):
    """Reads a page as a browser would: elements, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        # Paragraphs and list items may be left open in HTML; everything else must nest.
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def test_hostile_text_stays_text() -> None:
    page = Page(render_report(full(HOSTILE)))
    assert not page.open
    assert {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object"} == set()
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    # Every place that takes text shows it, whole.
    places = "T S AUC mean pretraining User profile note top wanted popular encoder fact value N"
    for place in places.split():
        assert f"{place} {HOSTILE}" in page.text, place


def test_page_needs_nothing_from_outside() -> None:
    text = render_report(full())
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "img"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "action"}:
                assert value is not None
                assert value.startswith("#"), (tag, name, value)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'<> ]+", text)) <= namespaces


def test_figures_stand_in_the_page() -> None:
    page = Page(render_report(full()))
    assert sum(tag == "svg" for tag, _ in page.elements) == 5
    for figure in (
        "0.7900",
        "+0.0600",  # over the better baseline
        "+0.0700",  # log loss: lower is better, so less is a lead
        "1.01%",  # trained share
        "100,000",
        "0.875",
    ):
        assert figure in page.text, figure


def test_lead_is_against_the_strongest_baseline_whichever_way_is_better() -> None:
    higher = Comparison("t", "AUC", 0.7, {"a": 0.8, "b": 0.6, "c": None})
    assert higher.lead == pytest.approx(-0.1)
    lower = Comparison("t", "loss", 0.5, {"a": 0.8, "b": 0.6}, higher_is_better=False)
    assert lower.lead == pytest.approx(0.1)
    assert Comparison("t", "AUC", 0.7, {"a": None}).lead is None


@pytest.mark.parametrize("model", [float("nan"), float("inf")])
def test_what_cannot_be_shown_is_an_error(model: float) -> None:
    with pytest.raises(DataError):
        render_report(ReportData("x", comparisons=[Comparison("t", "AUC", model, {})]))
