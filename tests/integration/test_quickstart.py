"""A shop's tables to tuned models and a report, and what one can do from there."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
import pytest

from m6rec_jax import cli, quickstart
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.run_report import report_on_run

SHOP = Path(__file__).resolve().parents[1] / "data" / "shop"
KINDS = ("coffee", "tea", "cake")


def enlarged_shop(folder: Path, users: int = 60, events: int = 2000) -> Path:
    """The shop of the tests with more of everything; customers keep to the kinds they like."""
    rng = random.Random(0)
    folder.mkdir()
    spec = json.loads((SHOP / "dataset.json").read_text()) | {"name": "Ana's enlarged shop"}
    (folder / "dataset.json").write_text(json.dumps(spec))
    items = [
        (f"{number:03d}", f"{name} {kind}", number % 7 + 1.5, kind, "true")
        for number, (name, kind) in enumerate(
            (name, kind) for kind in KINDS for name in ("dark", "light", "old", "green", "plain")
        )
    ]
    likes = {user: rng.choice(KINDS) for user in range(users)}
    tables = {
        "users": [("customer", "age", "city", "interests")]
        + [(f"u{user}", 20 + user, "Lisbon", kind) for user, kind in likes.items()],
        "items": [("sku", "name", "price", "kinds", "in_stock"), *items],
        "events": [("customer", "sku", "bought_at")],
    }
    for number in range(events):
        user = rng.randrange(users)
        of_kind = [item for item in items if item[3] == likes[user] or rng.random() < 0.1]
        row = (f"u{user}", rng.choice(of_kind)[0], 1_700_000_000 + 1000 * number)
        tables["events"].append(row)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What quickstart makes, with hardly any training: too few minutes, a few more, in which it is
    killed, still more, killed again, and the same once more.

    `killed` has the metrics and the sizes of the second time that it was killed.
    """
    folder = tmp_path_factory.mktemp("quickstart")
    out = folder / "out"
    shop = enlarged_shop(folder / "shop")
    run_phase = quickstart.run_phase

    def killed(gin_file: str, run: Path, bindings: Sequence[str]) -> Any:
        if run.name == "retriever":
            raise KeyboardInterrupt
        return run_phase(gin_file, run, bindings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "_MINUTES_OF_MINI", 1000)
        with pytest.raises(ConfigError, match=r"--minutes \d+ is enough") as refused:
            quickstart.run_quickstart(shop, out, minutes=0.02)
        (enough,) = re.findall(r"--minutes (\d+) is enough", str(refused.value))
        assert not (out / "foundation").exists()
        patch.setattr(quickstart, "_measure", lambda _: (1.0, 0.01))
        for minutes, steps in ((float(enough), 4), (200.0, 6)):
            runs = ("foundation", "scorer", "retriever")
            patch.setattr(quickstart, "_LEAST_STEPS", dict.fromkeys(runs, steps))
            patch.setattr(quickstart, "_MOST_STEPS", dict.fromkeys(runs, steps))
            patch.setattr(quickstart, "run_phase", killed)
            with pytest.raises(KeyboardInterrupt):
                quickstart.run_quickstart(shop, out, minutes=minutes)
            assert last_step(out / "scorer") == steps
        (folder / "killed").mkdir()
        for name in ("foundation/metrics.jsonl", "scorer/metrics.jsonl", "quickstart.json"):
            shutil.copy(out / name, folder / "killed" / name.replace("/", "_"))
        patch.setattr(quickstart, "_measure", None)
        patch.setattr(quickstart, "run_phase", run_phase)
        page, behind = quickstart.run_quickstart(shop, out, minutes=100)
    assert page == out / "report.html"
    assert any(line.startswith("scoring is behind a baseline: auc 0.") for line in behind)
    yield folder
    gin.clear_config()


def last_step(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    step: int = json.loads(lines[-1])["step"]
    return step


def test_everything_lies_in_one_folder(made: Path) -> None:
    out = made / "out"
    names = {path.name for path in out.iterdir()}
    assert {"data.gin", "prepare.gin", "foundation.gin", "scorer.gin", "retriever.gin"} <= names
    assert {"foundation", "scorer", "retriever", "items.index", "vocabulary.model"} <= names
    assert "measured" not in names
    sizes = json.loads((out / "quickstart.json").read_text())
    assert sizes["steps"] == {"foundation": 6, "scorer": 6, "retriever": 6}
    assert sizes["model"] == "tiny"
    assert (out / "retriever" / "inference" / "ranking.json").is_file()
    text = (out / "report.html").read_text()
    shown = ("AUC", "log loss", "hit rate @ 10", "item mean", "popularity", "two towers", "User u")
    for part in shown:
        assert part in text, part
    assert 0 < text.count(">chosen<") < 15, "only what the users chose is marked"


def test_the_same_command_goes_on(made: Path) -> None:
    """What was there when it was killed stays, the rest is made; with more minutes pretraining
    went on from its checkpoint.
    """
    out, killed = made / "out", made / "killed"
    assert (out / "quickstart.json").read_text() == (killed / "quickstart.json").read_text()
    for name in ("scorer", "foundation"):
        lines = (out / name / "metrics.jsonl").read_text()
        assert lines.startswith((killed / f"{name}_metrics.jsonl").read_text())
        steps = [json.loads(line)["step"] for line in lines.splitlines() if '"loss"' in line]
        assert steps == [1, 2, 3, 4, 5, 6]


def test_requests_none_of_which_can_be_answered(made: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(made / "out")
    Path("bad.jsonl").write_text('{"candidates": ["nothing"]}\n')
    words = ["infer", "--gin.MODEL_DIR=scorer", "--gin.PREPARED=data/Ana_s_enlarged_shop"]
    words[-1] += ".per_user_temporal"
    assert cli.main([*words, "--requests", "bad.jsonl", "--output", "bad_scores.jsonl"]) == 1


def test_a_report_of_any_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the scorer on its own, elsewhere than it was made, on some of the rows."""
    monkeypatch.chdir(made / "out")
    page = report_on_run(Path("scorer"), tmp_path / "page.html", rows=20)
    text = page.read_text()
    assert "on 20 of " in text
    assert "user and item mean" in text
    # The text that was read, and the answers to it.
    assert "bought " in text
    assert re.search(r"model 0\.\d\d, truth (positive|negative)", text)
    page = report_on_run(Path("foundation"), tmp_path / "foundation.html", rows=8)
    assert "perplexity" in page.read_text()


def test_a_report_by_all_devices_on_the_first_rows(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    command = ["report", "retriever", "--output", str(page), "--gin.Evaluator.limit=3"]
    subprocess.run(
        [sys.executable, "-m", "m6rec_jax.cli", *command],
        cwd=made / "out",
        env=os.environ | {"XLA_FLAGS": devices},
        check=True,
    )
    text = page.read_text()
    assert "hit rate @ 10" in text
    assert ": on 3 of " in text


def test_a_report_of_no_run(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        report_on_run(tmp_path)


def test_other_data_are_not_mixed_in(made: Path, tmp_path: Path) -> None:
    other = enlarged_shop(tmp_path / "shop")
    spec = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(spec | {"name": "another shop"}))
    with pytest.raises(DataError, match=r"the data set 'Ana's enlarged shop', .* 'another shop'"):
        quickstart.run_quickstart(other, made / "out")


def test_a_catalogue_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 7 items, and it takes at least 10"):
        quickstart.run_quickstart(SHOP, tmp_path)


def test_data_with_errors_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SHOP, tmp_path / "shop")
    with (tmp_path / "shop" / "events.csv").open("a") as file:
        file.write("nobody,0001,2024-03-09T10:00:00Z\n")
    with pytest.raises(DataError, match="has errors: mend them first"):
        quickstart.run_quickstart(tmp_path / "shop", tmp_path / "out")
    assert "nobody" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_before_the_sizes_were_chosen_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: Any, **__: Any) -> None:
        assert not (tmp_path / "vocabulary.model").exists()
        raise KeyboardInterrupt

    (tmp_path / "vocabulary.model").write_text("of other data")
    monkeypatch.setattr(quickstart, "prepare_both", prepare)
    shop = enlarged_shop(tmp_path / "shop")
    with pytest.raises(DataError, match=r"vocabulary\.model is not of this command"):
        quickstart.run_quickstart(shop, tmp_path)
    (tmp_path / "prepare.gin").touch()
    with pytest.raises(KeyboardInterrupt):
        quickstart.run_quickstart(shop, tmp_path)
