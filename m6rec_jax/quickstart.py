"""`m6rec quickstart FOLDER`: from a data set folder to a tuned scorer and retriever, and a report.

    check, prepare, vocabulary, pretrain, tune and evaluate a scorer and a retriever, index, report

Each step is what a command of `m6rec` does with a gin file that is written to the output folder, on
top of those in gin_configs/data/any, so that one can go on from there. Run again after an
interruption, it goes on where it stopped; with more minutes, pretraining goes on from where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax import configuration
from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.rendering.vocabulary_text import train_on_prepared
from m6rec_jax.data.store.prepared import Prepared, folder_of
from m6rec_jax.engine.model_folder import read_ranking
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.evaluation.calibration import calibrate
from m6rec_jax.evaluation.calibration import report as calibration_report
from m6rec_jax.io.json_text import json_text
from m6rec_jax.jobs.retrieval import TWO_TOWERS
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.pipeline.fitted_settings import measured_lengths, vocabulary_rows
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.pipeline.registration import evaluated_tasks
from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
from m6rec_jax.run_report import TaskResult, evaluate_task, write_page
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.sharding import make_mesh
from m6rec_jax.training.loop import TrainResult, train
from m6rec_jax.training.step_loop import EARLY_STOPPING

SIZES_FILE = "quickstart.json"
VOCABULARY = "vocabulary.model"
INDEX = "items.index"
_LEAST_ITEMS = 10
PREPARE, FOUNDATION, SCORER, RETRIEVER = "prepare", "foundation", "scorer", "retriever"
OF_LEAVE_ONE_OUT = ("SPLIT='leave_one_out'", "VIEWS=('next_items',)")
SUMMARY = (
    "One encoder-decoder that reads nothing but text: pretrained on these data, then tuned for "
    "scoring and for retrieval with the backbone frozen."
)
_STEPS = (
    "check",
    "prepare",
    "vocabulary",
    "pretrain",
    "tune and evaluate the scorer",
    "tune and evaluate the retriever",
    "index",
    "report",
)
# Shares of the time for steps and rows: of pretraining, of tuning the scorer and the retriever.
_SHARES = {FOUNDATION: 0.42, SCORER: 0.19, RETRIEVER: 0.24}
_EVALUATION_SHARE = 0.15
# Starting and compiling three runs, their validation, index, evaluation and report take so many
# times what it takes to start and compile one (on a grocer's 216,000 events).
_STARTS = 7
# The rows of evaluation are read by two models and ranked three times: as long as so many steps.
_STEPS_PER_EVALUATION = 2
# Fewer would say more of how a run begins than of its steps.
_MEASURED_STEPS = 8
# With fewer the loss of pretraining is still that of random pieces, and the scorer tosses a coin.
_LEAST_STEPS = {FOUNDATION: 200, SCORER: 80, RETRIEVER: 80}
_MOST_STEPS = {FOUNDATION: 1500, SCORER: 600, RETRIEVER: 600}
# From so many minutes on the model is `mini`, below `tiny`.
_MINUTES_OF_MINI = 4
# What a job is judged by.
_HEADLINES = {"scoring": "auc", "retrieval": "ndcg@10"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the data and the time decide.

    Attributes:
      dataset: name of the data set.
      model: a file of `gin_configs/models`.
      max_events: behaviours of a history that are kept.
      vocab_size: rows of the embedding.
      inputs, targets: tokens of a row.
      batch_size, num_shards: of training.
      minutes: that all of it is to take. least_minutes: fewer teach the model nothing.
      steps: of each run.
      rows_read: training rows that embeddings are started from.
      rows: that are evaluated of a test part (0: all).
    """

    dataset: str
    model: str
    max_events: int
    vocab_size: int
    inputs: int
    targets: int
    batch_size: int
    num_shards: int
    minutes: float
    least_minutes: int
    steps: Mapping[str, int]
    rows_read: int
    rows: int


def run_quickstart(
    folder: Path, output: Path, *, minutes: float = 12.0, seed: int = 0
) -> tuple[Path, list[str]]:
    """Makes everything below `output`.

    Args:
      folder: of users, items and events, with a `dataset.json`.
      output: what an earlier call left there is used: finished where that was cut off, and trained
        longer where `minutes` are more than then.
      minutes: what all of it should take on this machine; decides steps and sizes.
      seed: of initialisation, dropout and the order of the data.

    Returns:
      The report, and which jobs are behind a baseline, in sentences.

    Raises:
      DataError: the data have errors (with the check's report), fewer than 10 items, or the output
        is of other data.
      ConfigError: `minutes` is not positive, or too little for the model to learn anything; then
        what was prepared is kept.
      KeyboardInterrupt: a signal stopped one of the runs.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes} must be positive")
    begin = time.monotonic()
    folder, output = folder.resolve(), output.resolve()
    _tell(0)
    report = check_dataset(folder)
    print(report.render())
    if not report.ok:
        raise DataError(f"{folder} has errors: mend them first; m6rec data check says the same")
    if report.num_rows["items"] < _LEAST_ITEMS:
        raise DataError(
            f"{folder} has {report.num_rows['items']} items, and it takes at least {_LEAST_ITEMS}: "
            "so many of them are to be recommended"
        )
    spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(output):
        saved = _saved_sizes(spec["name"], output)
        if saved is None:
            if Path(VOCABULARY).exists() and not Path(f"{PREPARE}.gin").exists():
                raise DataError(
                    f"{output / VOCABULARY} is not of this command: give another --output"
                )
            _write_data_files(spec["name"])
            # One of a call that ended before may be of other data, or of another template.
            Path(VOCABULARY).unlink(missing_ok=True)
        _tell(1)
        scoring = prepare_both(folder, f"{PREPARE}.gin", Path(VOCABULARY), before=lambda: _tell(2))
        if saved is not None and minutes <= saved.minutes:
            sizes = saved
            print(f"{output / SIZES_FILE}: goes on with the plan of {saved.minutes:g} minutes")
        else:
            sizes = _sizes(scoring, minutes, begin, seed)
            if saved is not None:
                sizes = _extended(saved, sizes)
            _write_training_files(sizes)
            Path(SIZES_FILE).write_text(json_text(dataclasses.asdict(sizes), indent=2) + "\n")
        _show(sizes)
        if any(sizes.steps[name] < least for name, least in _LEAST_STEPS.items()):
            raise ConfigError(
                f"--minutes {sizes.minutes:g} is too little to learn from these data on this "
                f"machine (at least: {_listed(_LEAST_STEPS)} steps): --minutes "
                f"{sizes.least_minutes} is enough. {output} keeps what is prepared"
            )
        runs = {name: ([f"{name}.gin"], seeds(seed)) for name in _SHARES}
        tested, config = train_and_evaluate(
            runs, Path(), rows=sizes.rows, before=lambda n: _tell(3 + n)
        )
        _tell(6)
        configuration.parse_config(
            ["gin_configs/commands/index.gin", "data.gin"],
            [f"MODEL_DIR='{RETRIEVER}'", f"PREPARED={_prepared(spec['name'], 'leave_one_out')!r}"],
        )
        build_index(INDEX)
        _tell(7)
        page = write_page(
            output / "report.html",
            tested,
            config,
            "prompts",
            runs={name: Path(name) for name in runs},
            title=spec["name"],
            summary=SUMMARY,
            facts={
                "Folder": str(output),
                "Events": f"{report.num_rows['events']:,}",
                "Steps": _listed(sizes.steps),
                "Tokens of a row": f"inputs {sizes.inputs}, targets {sizes.targets}",
                "Minutes of this call": f"{(time.monotonic() - begin) / 60:.1f}",
            },
            notes=[
                "Scoring: each user's first events train, the last ones test; without labels "
                "in the data every event is positive, and negatives are sampled.",
                "Retrieval: each user's last item, among all items"
                + ("." if scoring.repeats_count else " the user has not had before."),
            ],
        )
    print(_what_next(output, page, spec["name"]))
    behind = list(itertools.chain.from_iterable(map(behind_baselines, tested)))
    if behind:
        print("", *behind, sep="\n")
        print(f"More than --minutes {sizes.minutes:g} may help: the same command goes on from here")
    return page, behind


def prepare_both(
    folder: Path, gin_file: str, vocabulary: Path, before: Callable[[], None] = lambda: None
) -> Prepared:
    """Prepares a data set for scoring and for retrieval, and trains a vocabulary, once.

    Args:
      folder: of users, items and events.
      gin_file: settings; its split is that of scoring.
      vocabulary: the file to make.
      before: called before the vocabulary is trained.

    Returns:
      What is prepared for scoring.
    """
    configuration.parse_config([gin_file], list(OF_LEAVE_ONE_OUT))
    prepare(folder, data_dir())
    configuration.parse_config([gin_file])
    prepared = prepare(folder, data_dir())
    before()
    if not vocabulary.is_file():
        train_on_prepared(data_dir(), output=vocabulary)
    return prepared


def train_and_evaluate(
    runs: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    output: Path,
    *,
    rows: int = 0,
    before: Callable[[int], None] = lambda number: None,
) -> tuple[list[TaskResult], ModelConfig]:
    """Makes the first run, tunes it as the others say, and evaluates these.

    Args:
      runs: name, which becomes a folder in `output` -> gin files and bindings.
      output: its parent.
      rows: of a test part that are evaluated (0: all).
      before: called with 0, 1, ... before each run.

    Returns:
      What was evaluated, and the configuration of the first model that was tuned.

    Raises:
      KeyboardInterrupt: a signal stopped one of the runs.
    """
    results, configs = [], []
    foundation = output / next(iter(runs))
    for number, (name, (gin_files, bindings)) in enumerate(runs.items()):
        before(number)
        start = [f"INITIAL_CHECKPOINT_PATH={str(foundation)!r}"] if number else []
        trained = run_phase(gin_files, output / name, [*bindings, *start])
        if number:
            configs.append(trained.model.config)
            results.append(evaluate_phase(trained, rows))
            print_metrics(results[-1])
    return results, configs[0]


def run_phase(gin_files: Sequence[str], folder: Path, bindings: Sequence[str]) -> TrainResult:
    """Trains as gin files say, or goes on with what is in the folder.

    Raises:
      KeyboardInterrupt: a signal stopped it.
    """
    print(f"{folder.name}: {', '.join(gin_files)}", flush=True)
    configuration.parse_config(gin_files, [f"MODEL_DIR={str(folder)!r}", *bindings])
    with own_vocabulary(folder):
        configuration.settle_measured()
    result = train()
    if result.stopped_by not in (None, EARLY_STOPPING):
        raise KeyboardInterrupt(result.stopped_by)
    return result


def evaluate_phase(result: TrainResult, sample: int = 0) -> TaskResult:
    """A run's last state on the test part of the task that gin is configured for.

    A retriever learns first how the items are ordered that it and others find, which is what is
    served (docs/evaluation.md#the-hybrid-retriever).

    Args:
      result: of `run_phase`, for which gin is still configured, or again.
      sample: rows of the validation and of the test part that are read (0: all).
    """
    folder, name = configuration.macro("MODEL_DIR"), configuration.macro("MIXTURE_OR_TASK_NAME")
    lengths = configuration.macro("TASK_FEATURE_LENGTHS")
    (task,) = evaluated_tasks(name)
    if task.kind == "retrieval":
        try:
            print(calibration_report(calibrate(folder, name, lengths, limit=sample)), flush=True)
        except DataError as error:  # few rows
            print(f"The two towers alone are evaluated, without the hybrid: {error}", flush=True)
    asked: dict[str, Any] = {"sample": sample, "ranking": read_ranking(folder, result.step)}
    return evaluate_task(task, lengths, result.model, result.state.variables, **asked)


def print_metrics(result: TaskResult) -> None:
    """The metrics that baselines have, too, side by side."""
    shared = [m for m in result.metrics if any(m in of for of in result.baselines.values())]
    width = max(map(len, [result.task.name, *shared]))
    print(f"{result.task.name.ljust(width)}  this model  " + "  ".join(result.baselines))
    for metric in shared:
        values = [f"{result.metrics[metric]:10.4f}"]
        for name, of in result.baselines.items():
            values.append(f"{of[metric]:{len(name)}.4f}" if metric in of else "–".rjust(len(name)))
        print(f"{metric.ljust(width)}  {'  '.join(values)}")


def behind_baselines(result: TaskResult) -> list[str]:
    """In a sentence, the best baseline that a job is behind by its headline metric, if any."""
    metric = _HEADLINES[result.task.kind]
    value = result.metrics.get(metric, math.inf)  # of one label there is no AUC
    values = {
        name: of[metric]
        for name, of in result.baselines.items()
        if metric in of and name != TWO_TOWERS  # a part of the hybrid
    }
    best = max(values, key=values.__getitem__, default=None)
    if best is None or values[best] <= value:
        return []
    return [
        f"{result.task.kind} is behind a baseline: {metric} {value:.4f}, and "
        f"{best.replace('_', ' ')} has {values[best]:.4f}"
    ]


# --- sizes ------------------------------------------------------------------------------------


def _saved_sizes(dataset: str, output: Path) -> Sizes | None:
    """Those of an earlier call, so that it is gone on with as it began."""
    if not Path(SIZES_FILE).is_file():
        return None
    sizes = Sizes(**json.loads(Path(SIZES_FILE).read_text(encoding="utf-8")))
    if sizes.dataset != dataset:
        raise DataError(
            f"{output} was made of the data set '{sizes.dataset}', and this one is '{dataset}': "
            "give another --output"
        )
    return sizes


def _sizes(prepared: Prepared, minutes: float, begin: float, seed: int) -> Sizes:
    """Measures the prepared text, and a few steps on this machine."""
    dataset = prepared.manifest.dataset
    lengths = measured_lengths(dataset)
    rows = min(prepared.num_rows(view)["train"] for view in ("groups", "documents"))
    num_shards = 4 if rows >= 64 else 1
    batch_size = max(4, min(64, rows // 4 // 4 * 4))
    batch_size += -batch_size % math.lcm(num_shards, make_mesh().size)
    draft = Sizes(
        dataset=dataset,
        model="mini" if minutes >= _MINUTES_OF_MINI else "tiny",
        max_events=prepared.manifest.options["max_events"],
        vocab_size=vocabulary_rows(dataset),
        inputs=lengths["inputs"],
        targets=lengths["targets"],
        batch_size=batch_size,
        num_shards=num_shards,
        minutes=minutes,
        least_minutes=0,
        steps=dict.fromkeys(_SHARES, _MEASURED_STEPS),
        rows_read=min(5000, 4 * rows),
        rows=0,
    )
    _write_training_files(draft)
    starting, per_step = _measure(seed)
    besides = time.monotonic() - begin + _STARTS * starting
    left = max(60 * minutes - besides, 0.0)
    steps = {
        name: int(np.clip(share * left / per_step, 1, _MOST_STEPS[name]))
        for name, share in _SHARES.items()
    }
    needed = max(_LEAST_STEPS[name] * per_step / share for name, share in _SHARES.items())
    tested = int(_EVALUATION_SHARE * left / per_step * batch_size / _STEPS_PER_EVALUATION)
    print(
        f"{minutes:g} minutes: about {besides / 60:.1f} for preparing, compiling and all else but "
        f"steps, of {per_step:.2g} s each"
    )
    return dataclasses.replace(
        draft,
        least_minutes=math.ceil((besides + needed) / 60),
        steps=steps,
        rows=max(tested, 100),
    )


def _extended(saved: Sizes, sizes: Sizes) -> Sizes:
    """The longer plan, after what it makes anew is removed: pretraining goes on if it can."""
    same = sizes.model == saved.model
    if same:
        steps = {name: max(count, saved.steps[name]) for name, count in sizes.steps.items()}
        sizes = dataclasses.replace(sizes, steps=steps)
        if steps == saved.steps:
            return sizes
    for name in (SCORER, RETRIEVER, INDEX, *(() if same else (FOUNDATION,))):
        if Path(name).is_dir():
            print(f"{name}: made anew, since {sizes.minutes:g} minutes change what it starts from")
            shutil.rmtree(name)
    return sizes


def _measure(seed: int) -> tuple[float, float]:
    """Seconds before the first step, and of a step of pretraining, on this machine."""
    print("\nmeasuring a few steps on this machine", flush=True)
    folder = Path("measured")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # Where embeddings start changes no step, and what is cut the run itself will say.
        settings = ["Start.embeddings='random'", "Logging.progress=False"]
        settings += seeds(seed)
        result = run_phase([f"{FOUNDATION}.gin"], folder, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    spent = {part: result.goodput[f"seconds/{part}"] for part in ("compile", "input_wait", "step")}
    # What is waited for is the first batch.
    overhead = spent["compile"] + spent["input_wait"] + result.goodput["seconds/startup"]
    return overhead, max(spent["step"], 1e-3) / result.step


# --- files ------------------------------------------------------------------------------------


def _write_data_files(dataset: str) -> None:
    """How data are prepared and found."""
    Path("data.gin").write_text(f"""# Where everything lies, seen from this folder.
import m6rec_jax.pipeline.locations

data_dir.path = 'data'
vocabulary_file.path = '{VOCABULARY}'
DATASET = {dataset!r}
""")
    Path(f"{PREPARE}.gin").write_text(f"""# How text and vocabulary are prepared.
#   m6rec data prepare FOLDER --gin_file {PREPARE}.gin

include 'data.gin'
import m6rec_jax.data.prepare
import m6rec_jax.data.rendering.vocabulary_text

SPLIT = 'per_user_temporal'
VIEWS = ('groups', 'next_items', 'documents')

prepare.split = %SPLIT
PrepareOptions.views = %VIEWS
train_on_prepared.dataset = %DATASET
train_on_prepared.split = %SPLIT
""")


def _write_training_files(sizes: Sizes) -> None:
    """Gin files of the three runs."""
    for name, recipe in ((FOUNDATION, "pretrain"), (SCORER, "scoring"), (RETRIEVER, "retrieval")):
        steps = sizes.steps[name]
        evaluated = tuning = ""
        settings = f"with_initial_embeddings.rows = {sizes.rows_read}\n"
        if name != FOUNDATION:
            evaluated = f"#   m6rec eval --gin.MODEL_DIR={name}\n"
            tuning = "include 'gin_configs/tuning/option_adapter.gin'\n"
            settings = f"INITIAL_CHECKPOINT_PATH = '{FOUNDATION}'\nEVAL_PERIOD = {-(-steps // 3)}\n"
        Path(f"{name}.gin").write_text(f"""# From this folder:
#   m6rec train --gin_file {name}.gin --gin.MODEL_DIR={name}
{evaluated}
include 'gin_configs/models/{sizes.model}.gin'
{tuning}include 'gin_configs/data/any/{recipe}.gin'
include 'data.gin'

BATCH_SIZE = {sizes.batch_size}
BatchIterator.num_shards = {sizes.num_shards}
TRAIN_STEPS = {steps}
WARMUP_STEPS = {max(1, min(100, steps // 10))}
Checkpoints.period = {max(50, steps // 5)}
Logging.period = {-(-steps // 40)}
{settings}""")


def seeds(seed: int) -> list[str]:
    """Bindings of a training run."""
    return [f"train.seed={seed}", f"BatchIterator.seed={seed}"]


def _prepared(dataset: str, split: str) -> str:
    return str(folder_of("data", dataset, split))


def _tell(number: int) -> None:
    print(f"\n[{number + 1}/{len(_STEPS)}] {_STEPS[number]}", flush=True)


def _listed(steps: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in steps.items())


def _show(sizes: Sizes) -> None:
    print(
        f"chosen: model {sizes.model}, {sizes.vocab_size:,} pieces, histories of up to "
        f"{sizes.max_events} events, rows of {sizes.inputs} + {sizes.targets} tokens, "
        f"{sizes.batch_size} rows a step; steps: {_listed(sizes.steps)}\n"
        f"        (all of it in the *.gin files beside {SIZES_FILE})"
    )


def _what_next(output: Path, page: Path, dataset: str) -> str:
    prepared = [
        shlex.quote(_prepared(dataset, split)) for split in ("per_user_temporal", "leave_one_out")
    ]
    return f"""
report: {page}

To go on, from that folder:
  cd {shlex.quote(str(output))}
  M6REC_DATA_DIR=data m6rec serve {RETRIEVER} --index {INDEX}   # and open http://127.0.0.1:8080
  m6rec eval --gin.MODEL_DIR={SCORER}
  m6rec infer --gin.MODEL_DIR={SCORER} --gin.PREPARED={prepared[0]} \\
      --requests requests.jsonl --output scores.jsonl
  m6rec eval --gin.MODEL_DIR={RETRIEVER}
  m6rec infer --gin.MODEL_DIR={RETRIEVER} --gin.PREPARED={prepared[1]} \\
      --index {INDEX} --requests requests.jsonl --output found.jsonl"""
