"""`m6rec infer --requests FILE`: a file of requests to the same rows with results.

Requests are read in chunks, so memory does not grow with the file; all batches have one shape, so
each program is compiled once. What is finished survives being killed: the same command goes on
(`tables.part_files`). Rows that cannot be answered go to a side file with the reason.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin
import jax
import numpy as np
from tqdm import tqdm

from m6rec_jax.checkpoints.buckets import in_bucket
from m6rec_jax.engine.bundle import Bundle, load_model
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.request_data import open_serving_data, refuse_dialogues
from m6rec_jax.jobs.request_jobs import Accepted, RequestJob
from m6rec_jax.jobs.requested_job import JobParts, job_of, make_job
from m6rec_jax.requests.files import Chunk, Position, RequestFile, open_requests
from m6rec_jax.requests.request import RejectedRow, RequestParser
from m6rec_jax.serving.part_files import PartFiles, Totals, side_files
from m6rec_jax.sharding import LogicalRules, data_parallel, make_mesh

log = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What became of a file of requests.

    Attributes:
      output: rows with results, in the order of the requests.
      rejected: the side file, JSON lines: `row`, `kind`, `reason`, `raw`.
      totals: how many of each.
    """

    output: Path
    rejected: Path
    totals: Totals

    def __str__(self) -> str:
        """The closing line, and another one where fields were ignored."""
        totals = self.totals
        number = sum(totals.rejected.values())
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in totals.rejected.most_common())
        text = (
            f"{totals.answered + number:,} requests: {totals.answered:,} answered ({self.output}), "
            f"{number:,} rejected ({self.rejected}{': ' if kinds else ''}{kinds})"
        )
        if totals.ignored:
            named = ", ".join(f"{_plain(n)} {count:,}" for n, count in totals.ignored.most_common())
            text += f"\nFields that the data set does not have were ignored, in rows: {named}"
        return text


@gin.configurable
def infer_requests(
    requests: str | Path = gin.REQUIRED,
    output: str | Path = gin.REQUIRED,
    model_dir: str | Path = gin.REQUIRED,
    *,
    task: str = "",
    job: str | None = None,
    step: int | None = None,
    load: Callable[..., Bundle] = load_model,
    prepared: str | None = None,
    items: str | None = None,
    index: str | None = None,
    approximate: bool = False,
    batch_size: int = 32,
    chunk_size: int = 1024,
    source_buckets: Sequence[int] | None = None,
    target_buckets: Sequence[int] | None = None,
    rules: LogicalRules | None = None,
    progress: bool = True,
) -> BatchReport:
    """Answers a file of requests (`tables.requests` says what one looks like).

    Args:
      requests: `.jsonl` or `.parquet`.
      output: of the same format. `NAME.rejected.jsonl` and `NAME.summary.json` go beside it.
      model_dir: of a training run.
      task: which of the model's tasks, where it has several.
      job: of `requested_job.JOBS`; None: what the task is for.
      step: which checkpoint; None: the newest.
      load: `load_model`, or what takes its arguments (`bank.bundle.load_with_bank`).
      prepared: folder with the catalogue and the statistics (`tables.serving_data`); None: what the
        task was trained on, in the data folder; '': neither, requests bring all of it. For
        'likelihood' it may be of a data set that the model was not trained on.
      items: Parquet or CSV file of a newer catalogue.
      index: folder of `m6rec index build`, for retrieval.
      approximate: search the index's graph.
      batch_size: rows of a batch, over all devices.
      chunk_size: requests read, answered and committed at a time.
      source_buckets, target_buckets: lengths to pad to; None: the longest alone, one program.
      rules: logical-axis rules; None: `data_parallel`. The mesh comes from `make_mesh` (gin).
      progress: whether to show a bar.

    Returns:
      What became of the rows, over all runs of this command.

    Raises:
      DataError: no requests, a damaged file, or an output of something else.
      CheckpointError: no model, or an index of another one.
      ConfigError: settings that do not fit the model.
    """
    requests, output = _checked_files(requests, output)
    if jax.process_count() > 1:
        raise ConfigError(
            "m6rec infer --requests runs in one process, on all of its devices; split the file, "
            "and start one for each part"
        )
    rules = data_parallel() if rules is None else tuple(rules)
    bundle = load(model_dir, step=step, mesh=make_mesh(), rules=rules)
    task = task_name(bundle.settings.tasks, task)
    if job != "likelihood":
        refuse_dialogues(bundle, task)
    job = job_of(bundle, task, job)
    data = open_serving_data(bundle, task, prepared, items, any_data_set=job == "likelihood")
    shapes = {
        "batch_sizes": (batch_size,),
        "source_buckets": source_buckets or (bundle.settings.source_length,),
        "target_buckets": target_buckets or (bundle.settings.target_length,),
    }
    wanted = make_job(job, JobParts(bundle, data, task, shapes, index, approximate))
    parser = RequestParser(
        data.spec,
        data.items,
        data.statistics_names(),
        wanted.candidates_field,
        wanted.about_field,
    )
    file = open_requests(requests, wanted.result_types)
    described = {
        "requests": _file_fingerprint(requests),
        "model": bundle.fingerprint(task),
        "data": data.fingerprint,
        **wanted.describe(),
    }
    return run_job(wanted, parser, file, output, described, chunk_size, progress)


def run_job(
    job: RequestJob,
    parser: RequestParser,
    file: RequestFile,
    output: Path,
    described: Mapping[str, Any],
    chunk_size: int = 1024,
    progress: bool = True,
) -> BatchReport:
    """Answers all requests of a file that have no answer yet.

    Args:
      job, parser, file: what to do, and with what.
      output: see `infer_requests`.
      described: what the output depends on.
      chunk_size, progress: see `infer_requests`.

    Raises:
      DataError: there are no requests, the output is another job's, or the model answers with NaN.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with PartFiles(output, file.suffix, described) as parts:
        if parts.finished:
            log.info("%s is complete already", output)
            return BatchReport(output, parts.rejected, parts.totals)
        if parts.start != Position():
            log.info("going on at row %s", f"{parts.start.row:,}")
        total, unit = file.extent()
        told = (_tell(job, parser, chunk) for chunk in file.chunks(parts.start, chunk_size))
        with tqdm(
            total=total,
            initial=file.progress(Position(), parts.start),
            unit="B" if unit == "bytes" else " rows",
            unit_scale=unit == "bytes",
            desc="requests",
            disable=not progress,
        ) as bar:
            for chunk in _one_ahead(told):
                results = job.answer(chunk.accepted) if chunk.accepted else {}
                results = results or {name: [] for name in job.result_types}
                _check_finite(results, chunk, file.path)
                file.write_part(parts.part, chunk.chunk, chunk.kept, results)
                bar.update(file.progress(parts.start, chunk.chunk.end))
                parts.commit(chunk.chunk.end, chunk.totals, chunk.rejected)
        if parts.start == Position():
            raise DataError(f"{file.path} has no rows")
        parts.finish(file.join)
        return BatchReport(output, parts.rejected, parts.totals)


@dataclasses.dataclass(frozen=True, slots=True)
class _Told:
    """A chunk, and what of it can be answered.

    Attributes:
      kept: which of the chunk's rows; `accepted` are their requests.
      rejected: lines of the side file.
    """

    chunk: Chunk
    kept: list[int]
    accepted: list[Accepted]
    rejected: list[dict[str, Any]]
    totals: Totals


def _tell(job: RequestJob, parser: RequestParser, chunk: Chunk) -> _Told:
    told = _Told(chunk, [], [], [], Totals())
    for place, row in enumerate(chunk.rows):
        problem = row.problem
        if row.values is not None:
            try:
                told.accepted.append(job.accept(parser.parse(row.values), row.number))
                told.kept.append(place)
                continue
            except RejectedRow as error:
                problem = error
        assert problem is not None
        told.totals.rejected[problem.kind] += 1
        told.rejected.append(
            {
                "row": row.number,
                "kind": problem.kind,
                "reason": _plain(str(problem)),
                "raw": _plain(row.shown()),
            }
        )
    told.totals.answered = len(told.kept)
    told.totals.ignored.update(parser.ignored)
    parser.ignored.clear()
    return told


def _check_finite(results: Mapping[str, Sequence[Any]], told: _Told, path: Path) -> None:
    """Refuses answers that are not numbers: no row's fault, and no reader takes them."""
    for name, values in results.items():
        for place, row in zip(told.kept, values, strict=True):
            if any(isinstance(v, float | np.floating) and not math.isfinite(v) for v in row):
                raise DataError(
                    f"{path}, row {told.chunk.rows[place].number}: the model's {name} hold "
                    "numbers that are not finite; has its training diverged?"
                )


def _one_ahead(values: Iterator[Item]) -> Iterator[Item]:
    """The same values, each made in a thread while the one before is being used."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, values, end)
        while (value := pending.result()) is not end:
            pending = pool.submit(next, values, end)
            yield value  # type: ignore[misc]


def _checked_files(requests: str | Path, output: str | Path) -> tuple[Path, Path]:
    for address in (requests, output):
        if in_bucket(address):
            raise ConfigError(
                f"{address}: requests and their results lie on a local disk, where parts of them "
                "can be locked and appended to; copy them from and to the bucket"
            )
    requests, output = Path(requests), Path(output)
    if output.suffix != requests.suffix:
        raise ConfigError(
            f"{output}: results are written in the format of the requests, {requests.suffix!r}"
        )
    for written in (output, *side_files(output)):
        if written.resolve() == requests.resolve():
            raise ConfigError(
                f"{written} is the file of requests itself, which --output {output} would "
                "overwrite; name another output"
            )
    return requests, output


def _file_fingerprint(path: Path) -> str:
    """SHA-256 of all that it holds: a file that was edited anywhere is another one."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(text: str) -> str:
    """Text that can be written as UTF-8: JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
