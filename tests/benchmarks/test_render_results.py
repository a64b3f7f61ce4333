"""`docs/results.md` is made of the result files and of nothing else."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render_results, results_file

STAMP = {"command": "python -m x", "commit": "abc", "hardware": "a CPU", "date": "2026-01-02"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "results"
    path.mkdir()
    return path


def add(folder: Path, name: str, values: dict[str, list[float]], **changes: Any) -> None:
    """Writes AUC rows: model -> a value per seed."""
    found = []
    for model, aucs in values.items():
        for seed, value in enumerate(aucs):
            rows = results_file.metric_rows(
                {"auc": value, "log_loss": 1 - value},
                **{
                    "model": model,
                    "dataset": "d",
                    "split": "s",
                    "seed": seed,
                    "config": "defaults",
                    "seconds": 10.0 + seed,
                }
                | changes,
            )
            found += [row | STAMP for row in rows]
    results_file.add_rows(folder / f"{name}.json", found)
    if not (prose := folder / f"{name}.md").exists():
        prose.write_text(f"# {name.upper()}\n\n{{{{ table(['auc', 'log_loss']) }}}}")


def run(folder: Path, *flags: str) -> int:
    output = folder.parent / "docs" / "results.md"
    return render_results.main(["--results", str(folder), "--output", str(output), *flags])


def page(folder: Path) -> str:
    assert run(folder) == 0
    return (folder.parent / "docs" / "results.md").read_text()


def line(text: str, model: str) -> list[str]:
    (found,) = [part for part in text.splitlines() if part.startswith(f"| {model}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_what_is_not_measured_yet_is_left_out(folder: Path) -> None:
    add(folder, "x", {"FM": [0.7]})
    prose = '# X\n{% if has("s") %}measured{% endif %}{% if has("t") %}missing{% endif %}\n'
    (folder / "x.md").write_text(prose)
    text = page(folder)
    assert "measured" in text
    assert "missing" not in text


def test_mean_and_spread_over_seeds(folder: Path) -> None:
    values = [0.70, 0.71, 0.75]
    add(folder, "x", {"FM": values, "LR": [0.6]})
    cells = line(page(folder), "FM")
    assert cells[1] == f"**{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}**"
    # One seed has no spread; and the better log loss is the lower one.
    assert line(page(folder), "LR")[1:3] == ["0.6000", "0.4000"]
    assert cells[2].startswith("**0.2800")


def test_a_metric_by_a_key_of_the_rows(folder: Path) -> None:
    for samples, values in ((64, [0.5, 0.6]), (1024, [0.7])):
        for model, more in (("FM", 0.0), ("LR", 0.01)):
            for seed, value in enumerate(values if model == "FM" or samples > 64 else []):
                rows = results_file.metric_rows(
                    {"auc": value + more},
                    model=model,
                    dataset="d",
                    split=f"few_{samples}",
                    seed=seed,
                    config="defaults",
                )
                rows = [row | {"samples": samples} | STAMP for row in rows]
                results_file.add_rows(folder / "x.json", rows)
    (folder / "x.md").write_text('# X\n\n{{ table_by("samples", "auc") }}')
    text = page(folder)
    assert "| model | 64 | 1,024 |" in text
    spread = statistics.stdev([0.5, 0.6])
    assert line(text, "FM")[1:3] == [f"0.5500 ± {spread:.4f}", "0.7000"]
    assert line(text, "LR")[1:3] == ["–", "**0.7100**"]
    (folder / "x.md").write_text('# X\n\n{{ table_by("sample", "auc") }}')
    assert run(folder) == 2


def test_prose_orders_sections_and_names_figures(folder: Path) -> None:
    add(folder, "a", {"FM": [0.7]})
    add(folder, "b", {"FM": [0.8]})
    (folder / "b.md").write_text(
        '# Later but first\n{# order: 1 #}\nFM reaches {{ figure("FM", "auc") }}.\n## Detail\n'
    )
    text = page(folder)
    assert text.index("## Later but first") < text.index("## A\n")
    assert "FM reaches 0.8000." in text
    assert "### Detail" in text


def test_the_summary_stands_on_top_and_leaves_out_what_is_not_there(folder: Path) -> None:
    add(folder, "x", {"FM": [0.7]})
    prose = """{% set x, y = of("x"), of("y") -%}
    {% if x.has(model="FM") %}FM: {{ x.figure("FM", "auc") }}.{% endif %}
    {% if y.has(model="FM") %}{{ y.figure("FM", "auc") }}{% endif %}"""
    (folder / "summary.md").write_text(prose)
    text = page(folder)
    assert text.index("\nFM: 0.7000.\n") < text.index("## X\n")
    (folder / "summary.md").write_text('{{ of("x").figure("FM", "mrr") }}')
    assert run(folder) == 2


def test_a_figure_may_be_of_a_baseline(folder: Path) -> None:
    for seed, other in ((0, 0.5), (1, 0.6)):
        rows = results_file.metric_rows(
            {"auc": 0.7}, model="FM", dataset="d", split="s", seed=seed, config="defaults"
        )
        rows = [row | {"baselines": {"mean": other}} | STAMP for row in rows]
        results_file.add_rows(folder / "x.json", rows)
    (folder / "x.md").write_text('# X\n{{ figure("FM", "auc", baseline="mean") }}')
    assert "\n0.5500\n" in page(folder)
    (folder / "x.md").write_text('# X\n{{ figure("FM", "auc", baseline="other") }}')
    assert run(folder) == 2


@pytest.mark.parametrize(
    ("prose", "message"),
    [
        ("no title", "the first line must be '# Title'"),
        ("# T\n{{ table(['nothing']) }}", "no row has the metric 'nothing'"),
        ("# T\n{{ figure('SVD', 'auc') }}", "matches 0 lines"),
        ("# T\n{{ table(['auc'], split='t') }}", "picks no rows"),
        ("# T\n{{ tabel(['auc']) }}", "x.md: 'tabel' is undefined"),
        ("# T\n{{ table( }}", "x.md:"),
    ],
)
def test_wrong_prose_is_an_error_that_names_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str], prose: str, message: str
) -> None:
    add(folder, "x", {"FM": [0.7]})
    (folder / "x.md").write_text(prose)
    assert run(folder) == 2
    assert message in capsys.readouterr().err


def test_one_table_is_of_one_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(folder, "x", {"FM": [0.7]})
    add(folder, "x", {"FM": [0.8]}, split="t")
    assert run(folder) == 2
    assert "one table or figure is of one split" in capsys.readouterr().err


def test_check_finds_what_is_stale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(folder, "x", {"FM": [0.7]})
    (folder / "x.md").write_text('# X\n{{ table(["auc"]) }}')
    assert run(folder, "--check") == 1  # not written yet
    docs = folder.parent / "docs"
    assert not docs.exists()  # a check writes nothing
    assert run(folder) == 0
    assert run(folder, "--check") == 0

    add(folder, "x", {"FM": [0.9]})
    capsys.readouterr()
    assert run(folder, "--check") == 1
    error = capsys.readouterr().err
    assert "0.9000" in error
    assert run(folder) == 0
    (docs / "results.md").write_text((docs / "results.md").read_text() + "a figure by hand\n")
    assert run(folder, "--check") == 1


def test_prose_may_stand_on_the_page_of_speed(folder: Path) -> None:
    add(folder, "x", {"FM": [0.7]})
    add(folder, "pods", {"xl": [0.9]})
    (folder / "pods.md").write_text('# Pods\n{# page: speed.md #}\n\n{{ table(["auc"]) }}')
    results = page(folder)
    speed = folder.parent / "docs" / "speed.md"
    assert "| FM" in results
    assert "xl" not in results
    assert line(speed.read_text(), "xl")[1] == "0.9000"
    assert run(folder, "--check") == 0
    speed.write_text(speed.read_text() + "x")
    assert run(folder, "--check") == 1
