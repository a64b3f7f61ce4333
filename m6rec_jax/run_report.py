"""`m6rec report RUN`: test metrics of a run beside baselines, its curves, what the model read."""

from __future__ import annotations

import dataclasses
import functools
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
    Example,
    ParameterGroup,
    ReportData,
    Text,
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
from m6rec_jax.pipeline.batches import EvaluationBatches
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.registration import TaskInfo, evaluated_tasks
from m6rec_jax.pipeline.task_rows import task_vocabulary
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.training.metric_log import read_metrics
from m6rec_jax.training.parameter_table import count_parameters
from m6rec_jax.training.task_data import trained_on

# Of a task: examples, of so many first rows, and texts and answers of one.
_EXAMPLES, _FIRST_ROWS, _SHOWN = 4, 64, 10
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

    @functools.cached_property
    def item_texts(self) -> Sequence[str]:
        """Of the catalogue, which is read once."""
        return self.task.prepared().catalogue().texts


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
    curves = [figure for name, folder in runs.items() for figure in _curves(name, folder)]
    data = ReportData(
        title=title,
        summary=summary,
        facts={**facts, "Date": datetime.now(UTC).strftime("%Y-%m-%d")},
        notes=[*notes, *([_HYBRID_NOTE] if of_hybrid else []), *_sample_notes(results)],
        parameters=[ParameterGroup(f"{g.part}: {g.name}", g.count, g.trains) for g in parameters],
        comparisons=[line for result in results for line in _comparisons(result, several)],
        figures=[*curves, *(one for result in results for one in _figures(result, several))],
        examples=[example for result in results for example in _examples(result)],
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
    for metric, title in _METRICS.items():
        shorter = metric.replace("@5", "@10")
        if metric not in metrics or (shorter != metric and shorter in metrics):
            continue
        yield Comparison(
            question,
            title,
            metrics[metric],
            {_title(name): values.get(metric) for name, values in known.items()},
            higher_is_better=metric not in _LOWER_IS_BETTER,
        )


def _title(baseline: str) -> str:
    """What a baseline is called."""
    titles = {"ease": "EASE", "user_item_times": "times had before"}
    return titles.get(baseline, baseline.replace("_", " "))


def _curves(name: str, folder: Path) -> Iterator[Figure]:
    """Losses and validation metrics of a run, where there is more than one value."""
    lines = read_metrics(folder)
    titles = {"loss": "Loss", "validation/loss": "Validation loss"}
    parts = sorted({key for line in lines for key in line if key.startswith("loss/")})
    titles |= {part: f"Loss of {part.removeprefix('loss/')}" for part in parts[:6]}
    for metric in ("auc", "ndcg@10", "accuracy", "perplexity"):
        titles[f"validation/{metric}"] = f"Validation {_METRICS[metric]}"
    for metric, title in titles.items():
        # A perplexity may be infinite.
        points = [
            (int(line["step"]), line[metric])
            for line in lines
            if math.isfinite(line.get(metric, math.nan))
        ]
        if len(points) > 1:
            yield report_figures.curve(f"{title}: {name}", *zip(*points, strict=True))


def _figures(result: TaskResult, several: bool) -> Iterator[Figure]:
    """Hit rates of retrieval; ROC and, of probabilities, calibration of scores."""
    predictions, title = result.predictions, result.task.name if several else ""
    if isinstance(predictions, RetrievalPredictions):
        ranks = baseline_ranks(result.evaluation, predictions)
        by_name = {_title(name): of_rows for name, of_rows in ranks.items()}
        longest = min(50, int(predictions.num_ranked.max()))
        yield report_figures.hit_rates(title, {"this model": predictions.ranks, **by_name}, longest)
    if not isinstance(predictions, ScoringPredictions):
        return
    if len(np.unique(predictions.labels)) < 2:  # of few rows: no curve has an area
        return
    scores = {"this model": predictions.probabilities}
    if "groups" in result.task.prepared().manifest.views:
        baselines = mean_baselines(result.evaluation).scores(predictions.users, predictions.items)
        scores |= {_title(name): values for name, values in baselines.items()}
    yield report_figures.roc_curves(title, predictions.labels, scores)
    yield from report_figures.calibration(title, predictions.labels, predictions.probabilities)


def _examples(result: TaskResult) -> Iterator[Example]:
    """Some of the first rows, as the model read them; of retrieval as many hits as misses.

    TFDS writes rows in no order.
    """
    batches = EvaluationBatches(
        result.task.name,
        result.lengths,
        _FIRST_ROWS,
        split=result.split,
        sample=result.num_rows,
    )
    batch = next(iter(batches))
    rows = {name: values[batch["example_weights"] > 0] for name, values in batch.items()}
    labels, predictions = rows["decoder_labels"] >= 0, result.predictions
    some: Sequence[int] = range(min(_EXAMPLES, len(labels)))
    if isinstance(predictions, RetrievalPredictions):
        some = _hits_and_misses(predictions, len(labels))
    is_of_users = result.task.view in _OF_USERS
    names = TaskPart(result.task, result.split).user_names() if is_of_users else {}
    for row in some:
        user = names.get(int(rows["user_ids"][row, 0]))
        read = _texts(result, rows, row, "encoder")
        first = int(labels[:row].sum())  # labels are numbered over all rows
        yield Example(
            f"User {user}" if user is not None else f"Row {row + 1} of the {result.split} part",
            read if len(read) <= _SHOWN else [*read[:1], *read[1 - _SHOWN :]],
            _answers(result, rows, row, first)[:_SHOWN],
            _wanted(result, row),
        )


def _hits_and_misses(predictions: RetrievalPredictions, num_rows: int) -> list[int]:
    """The first rows of both kinds, as many of each as there are, ascending."""
    ranks = predictions.ranks[:num_rows]
    best = np.where(ranks > 0, ranks, np.iinfo(np.int64).max).min(axis=1)
    hits, misses = (np.flatnonzero(of).tolist() for of in (best <= _SHOWN, best > _SHOWN))
    some = hits[: max(_EXAMPLES // 2, _EXAMPLES - len(misses))]
    return sorted([*some, *misses[: _EXAMPLES - len(some)]])


def _texts(
    result: TaskResult,
    rows: Mapping[str, np.ndarray],
    row: int,
    side: str,
    notes: Mapping[int, str] = {},
) -> list[Text]:
    """Blocks of the encoder or the decoder of a row, with notes by number of the block."""
    tokens, blocks = rows[f"{side}_input_tokens"][row], rows[f"{side}_block_ids"][row]
    texts, vocabulary = [], task_vocabulary(result.task.name)
    for block in np.unique(blocks[blocks > 0]).tolist():
        ids = tokens[blocks == block]
        note = ", ".join(filter(None, (f"{len(ids)} tokens", notes.get(block))))
        texts.append(Text(vocabulary.decode(ids), note))
    return [text for text in texts if text.text]


def _answers(
    result: TaskResult, rows: Mapping[str, np.ndarray], row: int, first: int
) -> list[Text]:
    """What the model made of a row, whose labels are numbered from `first` on."""
    predictions = result.predictions
    if isinstance(predictions, GenerationPredictions):
        reference = predictions.rows[row]["target"]
        return [Text(predictions.texts[row].text, "written"), Text(reference, "reference")]
    if isinstance(predictions, RetrievalPredictions):
        return _recommended(result, row)
    blocks = rows["decoder_block_ids"][row]
    positions = np.flatnonzero(rows["decoder_labels"][row] >= 0)
    notes = {
        int(blocks[position]): _judgement(predictions, first + number)
        for number, position in enumerate(positions)
    }
    if isinstance(predictions, LanguagePredictions) and predictions.weight[row]:
        nats = predictions.negative_log_likelihood[row] / predictions.weight[row]
        notes = dict.fromkeys(blocks.tolist(), f"{nats:.2f} nats per token")
    return _texts(result, rows, row, "decoder", notes)


def _judgement(predictions: Any, number: int) -> str:
    """The model's answer to the labelled text with this number, in the order of the rows."""
    if isinstance(predictions, ScoringPredictions):
        answer = "positive" if predictions.labels[number] else "negative"
        return f"model {predictions.probabilities[number]:.2f}, truth {answer}"
    if isinstance(predictions, ClassificationPredictions):
        best = int(predictions.probabilities[number].argmax())
        share = predictions.probabilities[number, best]
        return f"model class {best} ({share:.2f}), truth class {predictions.labels[number]}"
    return ""


def _recommended(result: TaskResult, row: int) -> list[Text]:
    """The list of a row, with scores: cosines, or the hybrid's weighted sums."""
    predictions, texts = result.predictions, result.item_texts
    there = predictions.top_items[row] >= 0
    items, scores = predictions.top_items[row][there], predictions.scores[row][there]
    bars = np.clip(scores, 0, 1)
    if _is_hybrid(result):  # from the last to the first
        least = scores.min(initial=np.inf)
        bars = (scores - least) / max(scores.max(initial=-np.inf) - least, 1e-9)
    chosen = np.isin(items, predictions.targets[row]).tolist()
    return [
        Text(texts[item], f"{score:.3f}", bar, is_hit)
        for item, score, bar, is_hit in zip(
            items.tolist(), scores.tolist(), bars.tolist(), chosen, strict=True
        )
    ]


def _wanted(result: TaskResult, row: int) -> list[Text]:
    """What the user of a row of retrieval chose later, and its ranks."""
    predictions = result.predictions
    if not isinstance(predictions, RetrievalPredictions):
        return []
    pairs = zip(predictions.targets[row].tolist(), predictions.ranks[row].tolist(), strict=True)
    return [Text(result.item_texts[item], f"rank {rank:,}") for item, rank in pairs if item >= 0]
