"""What makes the foundation better per hour of a processor: variants of its recipe, at equal time.

    python -m benchmarks.foundation_variants [--minutes 6] [--variants as_it_is deeper ...]

Each variant is gin_configs/examples/foundation_pretrain.gin with some bindings. Its pace is taken
over a few steps; then it trains for as many as fit into the minutes, its schedule stretched to
them, on one processor (`taskset -c N`), and is evaluated on the same held-out rows. What its
language tasks need is given in nats a text, mean over the tasks, so that variants of other
vocabularies compare, too. The data of the foundation must be prepared
(`python -m benchmarks.foundation`).

Rows go to `benchmarks/results/foundation_variants.json`; what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.foundation import EVALUATE, NAME, VOCABULARY, pretrain_file
from benchmarks.movielens import m6rec
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, read_results, results_path
from m6rec_jax.errors import DataError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.pipeline.locations import shared_vocabulary
from m6rec_jax.text.vocabulary import Vocabulary

RESULTS = "foundation_variants"
SPLIT = "validation"
PACE_STEPS = 40
EVAL_ROWS = 300


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe.

    Attributes:
      model: its name in the table.
      bindings: gin bindings beside the files, without `--gin.`.
      vocabulary_size: pieces of a vocabulary of its own; 0: that of the foundation.
    """

    model: str
    bindings: tuple[str, ...] = ()
    vocabulary_size: int = 0


def _size(embed_dim: int, layers: int) -> tuple[str, ...]:
    return (
        f"ModelConfig.embed_dim={embed_dim}",
        f"ModelConfig.mlp_dim={2 * embed_dim}",
        f"ModelConfig.num_heads={embed_dim // 32}",
        f"ModelConfig.num_encoder_layers={layers}",
        f"ModelConfig.num_decoder_layers={layers}",
    )


VARIANTS: Mapping[str, Variant] = {
    "as_it_is": Variant("as it is: width 128, 2 + 2 layers, 12,000 pieces, packed, cosine"),
    "deeper": Variant("4 + 4 layers", _size(128, 4)),
    "wider": Variant("width 192", _size(192, 2)),
    "narrower_deeper": Variant("width 96, 4 + 4 layers", _size(96, 4)),
    "small_vocabulary": Variant("6,000 pieces", vocabulary_size=6_000),
    "large_vocabulary": Variant("24,000 pieces", vocabulary_size=24_000),
    "not_packed": Variant("a text in a row each", ("BatchIterator.pack=False",)),
    "constant_rate": Variant("constant rate", ("warmup_schedule.decay='constant'",)),
    "rsqrt_rate": Variant("rate by 1/sqrt(step)", ("warmup_schedule.decay='rsqrt'",)),
    "half_rate": Variant("half the rate", ("LEARNING_RATE=5e-3",)),
    "double_rate": Variant("twice the rate", ("LEARNING_RATE=2e-2",)),
    "random_embeddings": Variant("embeddings start at random", ("Start.embeddings='random'",)),
    "no_dropout": Variant("no dropout", ("DROPOUT_RATE=0.0",)),
}


def nats_a_text(figures: Mapping[str, float], rows: int) -> float:
    """Mean over the language tasks of an evaluation of what a text of theirs needs.

    Args:
      figures: with `<task>/loss` (a piece) and `<task>/num_tokens` (of all rows).
      rows: evaluated of each task.

    Raises:
      DataError: there is no language task among them.
    """
    found = [
        value * figures[f"{task}/num_tokens"] / rows
        for name, value in figures.items()
        if (task := name.removesuffix("/loss")) != name and f"{task}/num_tokens" in figures
    ]
    if not found:
        raise DataError("the evaluation has no loss of a language task")
    return statistics.fmean(found)


def log_of(folder: Path) -> list[Mapping[str, float]]:
    """Lines of a run's log that tell its pace."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "tokens_per_second" in line]


class Study:
    """Trains and evaluates variants.

    Args:
      minutes: of training, compilation left out.
      output: folder of the runs while they last.
    """

    def __init__(self, minutes: float, output: Path) -> None:
        self.minutes, self.output = minutes, output

    def run(self, name: str) -> list[Row]:
        """Rows of one variant."""
        variant, folder = VARIANTS[name], self.output / name
        vocabulary = self._vocabulary(name, variant)
        bindings = [*variant.bindings, *vocabulary]
        log = log_of(self._train(folder / "pace", PACE_STEPS, PACE_STEPS // 2, bindings))
        # The last period has no compilation in it.
        step_seconds = self._batch_size(folder / "pace") / log[-1]["examples_per_second"]
        steps = max(int(60 * self.minutes / step_seconds), PACE_STEPS)
        run = self._train(folder / "run", steps, max(steps // 8, 1), bindings)
        figures = self._evaluate(run, vocabulary)
        pace = statistics.median(line["tokens_per_second"] for line in log_of(run)[1:])
        shutil.rmtree(folder)
        return metric_rows(
            {
                "nats_a_text": nats_a_text(figures, EVAL_ROWS),
                "tokens_per_second": pace,
                "steps": steps,
            },
            model=variant.model,
            dataset=NAME,
            split=SPLIT,
            seed=0,
            config=", ".join(bindings) or pretrain_file(NAME),
        )

    def _vocabulary(self, name: str, variant: Variant) -> list[str]:
        if not variant.vocabulary_size:
            return []
        shared, size = f"{NAME}_{name}", variant.vocabulary_size
        if not shared_vocabulary(shared).exists():
            m6rec(
                *("vocab", "train", "--gin_file", VOCABULARY),
                f"--gin.train_on_prepared.shared='{shared}'",
                f"--gin.train_vocabulary.size={size}",
            )
        rows = Vocabulary(shared_vocabulary(shared)).size  # control ids and spare rows, too
        return [f"vocabulary_file.shared='{shared}'", f"VOCAB_SIZE={rows}"]

    def _train(self, folder: Path, steps: int, period: int, bindings: Sequence[str]) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        m6rec(
            *("train", "--gin_file", pretrain_file(NAME), f"--gin.MODEL_DIR='{folder}'"),
            *(f"--gin.{binding}" for binding in bindings),
            *(f"--gin.TRAIN_STEPS={steps}", f"--gin.WARMUP_STEPS={max(steps // 20, 1)}"),
            *(f"--gin.EVAL_PERIOD={steps + 1}", f"--gin.Logging.period={period}"),
            *("--gin.Checkpoints.period=1000000", "--gin.Logging.tensorboard=False"),
        )
        return folder

    def _evaluate(self, run: Path, bindings: Sequence[str]) -> Mapping[str, float]:
        output = run / "validation.json"
        m6rec(
            *("eval", "--gin_file", EVALUATE, f"--gin.MODEL_DIR='{run}'"),
            *(f"--gin.{binding}" for binding in bindings),
            *(f"--gin.evaluate.limit={EVAL_ROWS}", f"--gin.evaluate.output='{output}'"),
        )
        figures: Mapping[str, float] = json.loads(output.read_text())
        return figures

    def _batch_size(self, folder: Path) -> int:
        lines = (folder / "config.gin").read_text().splitlines()
        return next(int(line.split("=")[1]) for line in lines if line.startswith("BATCH_SIZE ="))


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, each")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / RESULTS)
    options = parser.parse_args(arguments)
    study, path = Study(options.minutes, options.output.resolve()), results_path(RESULTS)
    for name in progress_bar(options.variants, unit="variant", desc="foundation"):
        made = {row["model"] for row in read_results(path).rows}
        if VARIANTS[name].model not in made:
            add_rows(path, study.run(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
