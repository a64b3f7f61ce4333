"""`m6rec report RUN`: test metrics of a run beside baselines, its curves, what the model read."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax import configuration
from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.config_file import CONFIG_FILE, EVALUATED_ROWS
from m6rec_jax.engine.index.ranking_weights import RankingWeights
from m6rec_jax.engine.model_folder import read_ranking, restore_model
from m6rec_jax.evaluation import report_figures
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.evaluation.report import (
    Comparison,
    ModelText,
    ParameterGroup,
    Recommendation,
    ReportData,
    TextPiece,
    UserPanel,
    write_report,
)
from m6rec_jax.evaluation.report_figures import Figure
from m6rec_jax.jobs.classification import ClassificationPredictions
from m6rec_jax.jobs.generation import GenerationPredictions
from m6rec_jax.jobs.job import Evaluation
from m6rec_jax.jobs.language import LanguagePredictions
from m6rec_jax.jobs.retrieval import TWO_TOWERS, RetrievalPredictions, baseline_ranks
from m6rec_jax.jobs.scoring import ScoringPredictions, mean_baselines
from m6rec_jax.metrics.baselines import MEAN_BASELINES
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.batches import EvaluationBatches
from m6rec_jax.pipeline.registration import TaskInfo, evaluated_tasks
from m6rec_jax.pipeline.task_rows import task_vocabulary
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.metric_log import read_metrics
from m6rec_jax.training.parameter_table import count_parameters
from m6rec_jax.training.task_data import trained_on

NUM_USERS, NUM_RECOMMENDED, SHOWN_TEXTS, SHOWN_ANSWERS = 4, 10, 10, 8
# Users of whom some are shown.
_MOST_USERS = 64
_QUESTIONS = {
    "scoring": "How likely is it that the user acts on an item?",
    "likelihood": "How likely is an item liked, or how plausible, without any tuning?",
    "retrieval": "Which item comes next, of all of them?",
    "embeddings": "How near are users to the items that they come to?",
    "title_recommendation": "Which title fits a dialogue?",
    "item_recommendation": "Which item fits a dialogue?",
    "classification": "Which class does a text have?",
    "language": "How well is text predicted?",
    "generation": "What does the model write?",
}
# Metric -> what it is called; the headline table has those that an evaluation gives.
_METRICS = {
    "auc": "AUC",
    "user_averaged_auc": "AUC within users",
    "repeats/auc": "AUC of repeats",
    "new_items/auc": "AUC of new items",
    "log_loss": "log loss",
    "hit_rate@10": "hit rate @ 10",
    "repeats/hit_rate@10": "hit rate @ 10, repeats",
    "new_items/hit_rate@10": "hit rate @ 10, new items",
    "hit_rate@5": "hit rate @ 5",
    "ndcg@10": "NDCG @ 10",
    "ndcg@5": "NDCG @ 5",
    "mrr": "MRR",
    "recall@10": "recall @ 10",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "bleu_2": "BLEU-2",
    "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "true_share": "true values",
    "new/recall@10": "recall @ 10, new items",
    "alignment": "alignment",
    "uniformity": "uniformity",
}
# Views whose rows have users.
_OF_USERS = ("groups", "next_items")
_HYBRID_NOTE = (
    "In retrieval the model is the hybrid that is served: what its two towers, co-occurrence, "
    "EASE, words and popularity say, weighed by what was learnt on validation rows; two towers are "
    "those alone."
)
_LOWER_IS_BETTER = ("log_loss", "perplexity", "alignment", "uniformity")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """A task on a part of its data, and what baselines reach there.

    Attributes:
      task, split: what was evaluated. lengths: of its rows, in tokens.
      num_rows: that were evaluated, of the prepared ones.
      evaluation: that made the metrics.
      predictions, metrics: of the model.
      baselines: name -> metric -> value.
    """

    task: TaskInfo
    split: str
    lengths: Mapping[str, int]
    num_rows: int
    evaluation: Evaluation
    predictions: Any
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the task."""
        return task_vocabulary(self.task.name)

    @functools.cached_property
    def user_names(self) -> Mapping[int, str]:
        """Ids of users by index in the users table; none where rows are not of users."""
        if self.task.view not in _OF_USERS:
            return {}
        return prepared_rows.TaskPart(self.task, self.split).user_names()


def evaluate_task(
    task: TaskInfo,
    lengths: Mapping[str, int],
    model: M6Rec,
    variables: Mapping[str, Any],
    *,
    split: str = "test",
    batch_size: int = 64,
    sample: int = 0,
    ranking: Mapping[str, RankingWeights] | None = None,
) -> TaskResult:
    """Predictions, metrics and baselines of one task; for arguments see `Evaluator`."""
    evaluator = Evaluator(task.name, lengths, batch_size, split=split, sample=sample)
    evaluator.ranking = ranking or {}
    predictions = evaluator.predict(task, model, variables)
    return TaskResult(
        task,
        split,
        lengths,
        evaluator.batches(task).read_rows,
        evaluator.evaluation(task),
        predictions,
        evaluator.metrics(task, predictions),
        evaluator.baselines(task, predictions),
    )


def report_on_run(
    run: Path,
    output: Path | None = None,
    *,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    split: str = "test",
    rows: int = 0,
) -> Path:
    """Evaluates the newest checkpoint of a run on its task and writes the page.

    Args:
      run: MODEL_DIR of a training run, on this machine.
      output: the page; None: `report.html` in the run.
      gin_files, bindings: settings beside those that the run was trained with.
      split: which part is evaluated.
      rows: of each task, at most (0: all).

    Raises:
      ConfigError: the run has no configuration, or it names no task.
      CheckpointError: the run has no checkpoint.
      DataError: its data are not on this machine; says how to prepare them.
    """
    trainable = open_checkpoint(run).manifest.trainable or "all"
    configuration.parse_config([run.absolute() / CONFIG_FILE, EVALUATED_ROWS, *gin_files], bindings)
    name, lengths = trained_on(run / CONFIG_FILE)
    tasks = evaluated_tasks(name)
    datasets = {task.dataset: task.prepared() for task in tasks}  # raises where they are not here
    mesh, rules = make_mesh(), data_parallel()
    restored = restore_model(
        run, vocabulary_fingerprint=task_vocabulary(name).fingerprint, mesh=mesh, rules=rules
    )
    asked: dict[str, Any] = {"split": split, "sample": rows}
    asked["ranking"] = read_ranking(run, restored.step)
    results = [
        evaluate_task(task, lengths, restored.model, restored.variables, **asked) for task in tasks
    ]
    return write_page(
        output or run / "report.html",
        results,
        restored.model.config,
        trainable,
        runs={run.name or str(run): run},
        title=", ".join(datasets),
        summary=f"{run}, after step {restored.step}, on the {split} part.",
        facts={
            "Run": str(run),
            "Task": name,
            "Checkpoint": f"step {restored.step}",
            "Trained": "the prompts; the backbone is frozen" if trainable == "prompts" else "all",
            "Tokens of a row": ", ".join(f"{kind} {n}" for kind, n in lengths.items()),
        },
    )


def write_page(
    page: Path,
    results: Sequence[TaskResult],
    config: ModelConfig,
    trainable: str,
    *,
    runs: Mapping[str, Path],
    title: str,
    summary: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Path:
    """Writes what tasks reached and how the runs that made them went, and returns `page`.

    Args:
      page: the file.
      results: of `evaluate_task`.
      config, trainable: of the model; 'prompts' or 'all'.
      runs: what a run is called -> MODEL_DIR.
      title, summary, facts, notes: see `ReportData`.
    """
    several, of_hybrid = len(results) > 1, any(map(_is_hybrid, results))
    parameters = [] if trainable == "all" else count_parameters(config, trainable).groups
    curves = [curve for name, folder in runs.items() for curve in _curves(name, folder)]
    # Of a single point there is no line to draw.
    points = {
        title: ", ".join(
            f"{values[0]:,.4f} ({name}, step {steps[0]:,})"
            for name, (steps, values) in series.items()
        )
        for title, series in curves
        if all(len(steps) == 1 for steps, _ in series.values())
    }
    drawn = [report_figures.curves(*curve) for curve in curves if curve[0] not in points]
    data = ReportData(
        title=title,
        summary=summary,
        facts={**points, **facts, "Date": datetime.now(UTC).strftime("%Y-%m-%d")},
        notes=[*notes, *([_HYBRID_NOTE] if of_hybrid else []), *_sample_notes(results)],
        parameters=[ParameterGroup(f"{g.part}: {g.name}", g.count, g.trains) for g in parameters],
        comparisons=[line for result in results for line in _comparisons(result, several)],
        figures=[*drawn, *(one for result in results for one in _figures(result, several))],
        users=[panel for result in results for panel in _users(result)],
        score_name="hybrid's weighted sum" if of_hybrid else "cosine similarity",
        texts=[text for result in results for text in _texts(result, several)],
    )
    return write_report(page, data)


def _is_hybrid(result: TaskResult) -> bool:
    """Whether more than the two towers ranked."""
    return getattr(result.predictions, "towers_ranks", None) is not None


def _sample_notes(results: Sequence[TaskResult]) -> list[str]:
    """Notes on metrics of some rows alone."""
    notes = []
    for result in results:
        total = result.task.prepared().num_rows(result.task.view)[result.split]
        if result.num_rows < total:
            notes.append(f"{result.task.name}: on {result.num_rows:,} of {total:,} rows.")
    return notes


def _title(result: TaskResult, several: bool) -> str:
    return result.task.name if several else ""


def _comparisons(result: TaskResult, several: bool) -> Iterator[Comparison]:
    metrics = result.metrics
    known = {name: dict(values) for name, values in result.baselines.items()}
    # Recommendations in dialogues and zero-shot scores come with theirs.
    for name, value in metrics.items():
        baseline, _, metric = name.partition("/")
        if baseline in (*MEAN_BASELINES, TWO_TOWERS, "user_item_times", "chance") and metric:
            known.setdefault(baseline, {})[metric] = value
    question = _QUESTIONS.get(result.task.kind, "")
    if several:
        question = f"{result.task.name}: {question}"
    for metric, shown in _METRICS.items():
        shorter = metric.replace("@5", "@10")
        if metric not in metrics or (shorter != metric and shorter in metrics):
            continue
        yield Comparison(
            question,
            shown,
            metrics[metric],
            {_shown(name): values.get(metric) for name, values in known.items()},
            higher_is_better=metric not in _LOWER_IS_BETTER,
        )


def _shown(baseline: str) -> str:
    """What a baseline is called."""
    return {"ease": "EASE", "user_item_times": "times had before"}.get(
        baseline, baseline.replace("_", " ")
    )


def _curves(
    name: str, folder: Path
) -> Iterator[tuple[str, dict[str, tuple[list[int], list[float]]]]]:
    """Losses and validation metrics of a run; values of different scales have their own axes."""
    lines = read_metrics(folder)

    def series(metric: str) -> tuple[list[int], list[float]]:
        # A perplexity may be infinite.
        own = (line for line in lines if math.isfinite(line.get(metric, math.nan)))
        pairs = [(int(line["step"]), line[metric]) for line in own]
        return [step for step, _ in pairs], [value for _, value in pairs]

    training, validation = series("loss"), series("validation/loss")
    if training[0] and validation[0] and _alike(training[1], validation[1]):
        yield f"Loss: {name}", {"training": training, "validation": validation}
    else:
        for what, of in (("Loss", training), ("Validation loss", validation)):
            if of[0]:
                yield f"{what}: {name}", {what.lower(): of}
    for metric in sorted({key for line in lines for key in line if key.startswith("loss/")})[:6]:
        yield f"Loss of {metric.removeprefix('loss/')}: {name}", {"training": series(metric)}
    for metric in ("auc", "ndcg@10", "accuracy", "perplexity"):
        of = series(f"validation/{metric}")
        if of[0]:
            yield f"Validation {_METRICS[metric]}: {name}", {metric: of}


def _alike(one: Sequence[float], two: Sequence[float]) -> bool:
    """Whether two losses change visibly on one axis."""
    middles = sorted(abs(float(np.median(values))) for values in (one, two))
    return middles[1] <= 1.5 * middles[0]


def _figures(result: TaskResult, several: bool) -> Iterator[Figure]:
    """Hit rates of retrieval; ROC and, of probabilities, calibration of scores."""
    found, title = result.predictions, _title(result, several)
    if isinstance(found, RetrievalPredictions):
        ranks = baseline_ranks(result.evaluation, found)
        by_name = {_shown(name): of_rows for name, of_rows in ranks.items()}
        longest = min(50, int(found.num_ranked.max()))
        yield report_figures.hit_rates(title, {"this model": found.ranks, **by_name}, longest)
    if not isinstance(found, ScoringPredictions):
        return
    if len(np.unique(found.labels)) < 2:  # of few rows: no curve has an area
        return
    baselines: dict[str, np.ndarray] = {}
    if "groups" in result.task.prepared().manifest.views:
        fitted = mean_baselines(result.evaluation)
        scores = fitted.scores(found.users, found.items)
        baselines = {_shown(name): values for name, values in scores.items()}
    of_all = {"this model": found.probabilities, **baselines}
    yield report_figures.roc_curves(title, found.labels, of_all)
    if found.probabilities is not None:
        yield from report_figures.calibration(title, found.labels, found.probabilities)


def _first_rows(result: TaskResult, count: int) -> dict[str, np.ndarray]:
    """The first rows that were evaluated, as the model read them. TFDS writes them in no order."""
    batches = EvaluationBatches(
        result.task.name,
        result.lengths,
        count,
        split=result.split,
        sample=result.num_rows,
    )
    batch = next(iter(batches))
    return {name: rows[batch["example_weights"] > 0] for name, rows in batch.items()}


def _pieces(
    vocabulary: Vocabulary, tokens: np.ndarray, blocks: np.ndarray
) -> Iterator[tuple[int, str, int]]:
    """Number, text and tokens of each block of a row."""
    for block in np.unique(blocks[blocks > 0]):
        ids = tokens[blocks == block]
        yield int(block), vocabulary.decode(ids), len(ids)


def _source(result: TaskResult, rows: Mapping[str, np.ndarray], row: int) -> list[TextPiece]:
    tokens, blocks = rows["encoder_input_tokens"][row], rows["encoder_block_ids"][row]
    pieces = _pieces(result.vocabulary, tokens, blocks)
    return [TextPiece(text, count) for _, text, count in pieces if text]


def _row_name(result: TaskResult, rows: Mapping[str, np.ndarray], row: int) -> str:
    user = result.user_names.get(int(rows["user_ids"][row, 0]))
    return f"User {user}" if user is not None else f"Row {row + 1} of the {result.split} part"


def _users(result: TaskResult) -> Iterator[UserPanel]:
    found = result.predictions
    if not isinstance(found, RetrievalPredictions):
        return
    texts = result.task.prepared().catalogue().texts
    rows = _first_rows(result, _MOST_USERS)
    for row in _hits_and_misses(found, len(rows["user_ids"])):
        history = [piece.text for piece in _source(result, rows, row)]
        wanted = set(found.targets[row][found.targets[row] >= 0].tolist())
        there = found.top_items[row] >= 0
        items, scores = found.top_items[row][there], found.scores[row][there]
        if found.towers_ranks is None:  # cosines
            bars = np.clip(scores, 0, 1)
        else:  # weighted sums: from the last to the first
            least, most = scores.min(initial=np.inf), scores.max(initial=-np.inf)
            bars = (scores - least) / max(most - least, 1e-9)
        shown = zip(items.tolist(), scores.tolist(), bars.tolist(), strict=True)
        yield UserPanel(
            _row_name(result, rows, row),
            [*history[:1], *history[1:][-SHOWN_TEXTS:]],
            [
                Recommendation(texts[item], score, bar, item in wanted)
                for item, score, bar in itertools.islice(shown, NUM_RECOMMENDED)
            ],
            [texts[item] for item in sorted(wanted)],
            len(history),
        )


def _hits_and_misses(found: RetrievalPredictions, num_rows: int) -> list[int]:
    """The first rows of both kinds, as many of each as there are, ascending."""
    ranks = np.where(found.ranks > 0, found.ranks, np.iinfo(np.int64).max)[:num_rows].min(axis=1)
    hits, misses = (
        np.flatnonzero(of_kind).tolist()
        for of_kind in (ranks <= NUM_RECOMMENDED, ranks > NUM_RECOMMENDED)
    )
    some = hits[: max(NUM_USERS // 2, NUM_USERS - len(misses))]
    return sorted([*some, *misses[: NUM_USERS - len(some)]])


def _texts(result: TaskResult, several: bool) -> Iterator[ModelText]:
    """Two rows: all segments that the model read, and what it made of the texts it judged."""
    rows = _first_rows(result, 2)
    labelled = 0
    for row in range(len(rows["user_ids"])):
        positions = np.flatnonzero(rows["decoder_labels"][row] >= 0)
        blocks = rows["decoder_block_ids"][row]
        remarks = {
            int(blocks[position]): _remark(result, labelled + number)
            for number, position in enumerate(positions)
        }
        labelled += len(positions)
        yield ModelText(
            _row_name(result, rows, row),
            _source(result, rows, row),
            _answers(result, rows, row, remarks)[:SHOWN_ANSWERS],
            task=_title(result, several),
        )


def _answers(
    result: TaskResult, rows: Mapping[str, np.ndarray], row: int, remarks: Mapping[int, str]
) -> list[TextPiece]:
    found, vocabulary = result.predictions, result.vocabulary
    if isinstance(found, GenerationPredictions):
        texts = {"written": found.texts[row].text, "reference": found.rows[row]["target"]}
        return [TextPiece(text, len(vocabulary.encode(text)), what) for what, text in texts.items()]
    remark = ""
    if isinstance(found, RetrievalPredictions):
        remark = f"rank {', '.join(f'{rank:,}' for rank in found.ranks[row] if rank > 0)}"
    if isinstance(found, LanguagePredictions) and found.weight[row]:
        remark = f"{found.negative_log_likelihood[row] / found.weight[row]:.2f} nats per token"
    blocks = _pieces(vocabulary, rows["decoder_input_tokens"][row], rows["decoder_block_ids"][row])
    return [
        TextPiece(text, count, remarks.get(block, remark)) for block, text, count in blocks if text
    ]


def _remark(result: TaskResult, number: int) -> str:
    """The model's answer to the labelled text with this number, in the order of the rows."""
    found = result.predictions
    if isinstance(found, ScoringPredictions):
        answer = "positive" if found.labels[number] else "negative"
        return f"model {found.probabilities[number]:.2f}, truth {answer}"
    if isinstance(found, ClassificationPredictions):
        best = int(found.probabilities[number].argmax())
        share = found.probabilities[number, best]
        return f"model class {best} ({share:.2f}), truth class {found.labels[number]}"
    return ""
