"""`m6rec infer --requests FILE`: files of requests to the same rows with results.

Requests are read in chunks, so memory does not grow with the file; all batches have one shape, so
each program is compiled once. What is finished survives being killed: the same command goes on
(`part_files`), in a bucket with the file that was under way. Rows that cannot be answered go to a
side file with the reason. Chunks are answered in this process or by workers of Ray; their order and
what becomes of a row do not depend on which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gin
import jax
import pyarrow as pa
from etils import epath

from m6rec_jax.engine.model_folder import all_devices
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import bucket_copies, bucket_errors, check_writable, in_bucket, path_of
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.workers import RayWorkers, Threads, Workers
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.files import Chunk, Shard, open_requests
from m6rec_jax.serving.part_files import PartFiles, Totals, side_files
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.sharding import LogicalRules

log = logging.getLogger(__name__)

_GAPS = {
    "no_history": "without a history",
    "unknown_items": "with behaviours left out, whose items the catalogue does not have",
}
_ARROW_TYPES = {
    "float": pa.list_(pa.float32()),
    "int": pa.list_(pa.int32()),
    "string": pa.list_(pa.string()),
}


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What became of a file of requests.

    `output` has rows with results, in the order of the requests, and `rejected`, the side file,
    JSON lines of `row`, `kind`, `reason`, `raw`; `totals` say how many of each.
    """

    output: epath.Path
    rejected: epath.Path
    totals: Totals

    def __str__(self) -> str:
        """The closing line, and others where something was missing or ignored."""
        totals = self.totals
        number = sum(totals.rejected.values())
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in totals.rejected.most_common())
        text = (
            f"{totals.answered + number:,} requests: {totals.answered:,} answered ({self.output}), "
            f"{number:,} rejected ({self.rejected}{': ' if kinds else ''}{kinds})"
        )
        gaps = [f"{_GAPS[name]} {count:,}" for name, count in totals.gaps.most_common()]
        if gaps:
            text += f"\nAnswered with what is known, in rows: {', '.join(gaps)}"
        if totals.ignored:
            named = ", ".join(f"{n} {count:,}" for n, count in totals.ignored.most_common())
            text += f"\nFields that the data set does not have were ignored, in rows: {named}"
        return text


@gin.configurable
def infer_requests(
    requests: str | Path = gin.REQUIRED,
    output: str | Path = gin.REQUIRED,
    model_dir: str | Path = gin.REQUIRED,
    *,
    bank: str | None = None,
    task: str = "",
    job: str | None = None,
    step: int | None = None,
    prepared: str | None = None,
    items: str | None = None,
    index: str | None = None,
    batch_size: int = 32,
    chunk_size: int = 1024,
    rules: LogicalRules | None = None,
    shard: Shard | None = None,
    engine: Literal["process", "ray"] = "process",
    progress: bool = True,
) -> list[BatchReport]:
    """Answers files of requests (`requests.request` says what one looks like).

    Args:
      requests: a file, `.jsonl` or `.parquet`; or a folder of them, or a pattern such as
        `requests/*.jsonl`. It may be in a bucket.
      output: a file of the same format; of several files a folder, where each has its name.
        `NAME.rejected.jsonl` and `NAME.summary.json` go beside it.
      model_dir, bank, step: see `Service.open`.
      task, job: see `Service.accept`.
      prepared, items, index: see `ServiceOptions`. For 'likelihood' `prepared` may be of a data set
        that the model was not trained on.
      batch_size: rows of a batch, over all devices.
      chunk_size: requests read, answered and committed at a time.
      rules: logical-axis rules; see `model_folder.all_devices`.
      shard: which part to answer, so that several commands share the work: of one file its rows,
        which may be none, and the output's name says which; of several files every
        `shard.count`-th.
      engine: 'process': this one; 'ray': workers of Ray, see `io.workers.WorkerOptions` (gin).
      progress: whether to show a bar.

    Returns:
      What became of the rows of each file, over all runs of this command.

    Raises:
      DataError: no requests, a damaged file, or an output of something else.
      CheckpointError: no model, or an index of another one.
      ConfigError: settings that do not fit the model.
    """
    files = list(_files(str(requests), str(output), shard))
    if engine == "process" and jax.process_count() > 1:
        raise ConfigError(
            "m6rec infer --requests runs in one process, on all of its devices; start one for each "
            "host with --shard INDEX/COUNT"
        )
    options = ServiceOptions(
        prepared=prepared,
        items=items,
        index=index,
        batch_sizes=(batch_size,),
    )
    make = functools.partial(_open, str(model_dir), bank, step, rules, options)
    with contextlib.ExitStack() as stack:
        workers: Workers[Service]
        if engine == "ray":
            workers = stack.enter_context(RayWorkers("m6rec infer --engine ray", make))
        else:
            workers = stack.enter_context(Threads(make()))
        return [_answer_anywhere(workers, *file, task, job, chunk_size, progress) for file in files]


def _open(
    model_dir: str,
    bank: str | None,
    step: int | None,
    rules: LogicalRules | None,
    options: ServiceOptions,
) -> Service:
    mesh, rules = all_devices(model_dir, rules)
    return Service.open(model_dir, bank=bank, step=step, mesh=mesh, rules=rules, options=options)


def _files(
    requests: str, output: str, shard: Shard | None
) -> Iterator[tuple[epath.Path, epath.Path, Shard | None]]:
    """Files to read and to write, and which part of each.

    Raises:
      DataError: there is no such file.
      ConfigError: results would have another format, or overwrite the requests.
    """
    source, target = epath.Path(path_of(requests)), epath.Path(path_of(output))
    found = [source]
    with bucket_errors(requests, "read"):
        several = not source.is_file() and (
            source.is_dir() or any(sign in requests for sign in "*?[")
        )
        if several:
            folder, pattern = (source, "*") if source.is_dir() else (source.parent, source.name)
            # A folder of results has side files, too.
            found = sorted(
                path
                for path in folder.glob(pattern)
                if path.suffix in (".jsonl", ".parquet")
                and not path.name.endswith(".rejected.jsonl")
            )
            if not found:
                if not folder.is_dir() and any(sign in str(folder) for sign in "*?["):
                    raise ConfigError(
                        f"{requests}: a pattern may stand in the file's name alone, of files in "
                        "one folder"
                    )
                raise DataError(f"{requests}: there are no .jsonl or .parquet files")
    if several and shard is not None:
        found, shard = found[shard.index :: shard.count], None
    for path in found:
        own = target / path.name if several else target if shard is None else shard.of(target)
        if own.suffix != path.suffix:
            raise ConfigError(
                f"{own}: results are written in the format of the requests, {path.suffix!r}"
            )
        for written in (own, *side_files(own)):
            if written.resolve() == path.resolve():
                raise ConfigError(
                    f"{written} is the file of requests itself, which --output {output} would "
                    "overwrite; name another output"
                )
        yield path, own, shard


def _answer_anywhere(
    workers: Workers[Service],
    requests: epath.Path,
    output: epath.Path,
    shard: Shard | None,
    task: str,
    job: str | None,
    chunk_size: int,
    progress: bool,
) -> BatchReport:
    """`answer_file`, with copies on the local disk of files in a bucket."""
    with bucket_copies() as copies:
        check_writable(output.parent)
        with bucket_errors(output, "read"):
            finished = in_bucket(output) and output.exists()
        target = copies.of(output)
        if finished:  # the summary says of what, where there is one
            copies.fetch(side_files(output)[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        report = answer_file(
            workers, copies.fetch(requests), target, shard, task, job, chunk_size, progress
        )
        if not finished:
            # The output last: when it is there, everything is.
            for path in (*side_files(output), output):
                copies.store(path)
    return BatchReport(output, side_files(output)[0], report.totals)


def answer_file(
    workers: Workers[Service],
    requests: Path,
    output: Path,
    shard: Shard | None = None,
    task: str = "",
    job: str | None = None,
    chunk_size: int = 1024,
    progress: bool = True,
) -> BatchReport:
    """Answers all requests of a file that have no answer yet; see `infer_requests`."""
    asked = workers.begin(_asked, task, job)()
    file = open_requests(requests, {name: _ARROW_TYPES[kind] for name, kind in asked.types.items()})
    described = {"requests": file_sha256(requests), **asked.described}
    start, end = (shard or Shard()).rows(file.num_rows)
    if shard is not None:
        described["shard"] = str(shard)
    output.parent.mkdir(parents=True, exist_ok=True)
    with PartFiles(output, file.suffix, described, start) as parts:
        if parts.finished:
            log.info("%s is complete already", output)
            return BatchReport(epath.Path(output), epath.Path(parts.rejected), parts.totals)
        if parts.start != start:
            log.info("going on at row %s", f"{parts.start:,}")
        chunks, sent = itertools.tee(file.chunks(parts.start, chunk_size, end))
        answered = workers.map(functools.partial(_answered, asked), chunks)
        with progress_bar(
            total=end - start,
            initial=parts.start - start,
            unit=" rows",
            desc="requests",
            disable=not progress,
        ) as bar:
            for chunk, own in zip(sent, answered, strict=True):
                file.write_part(parts.part, chunk, own.kept, own.columns)
                bar.update(chunk.end - parts.start)
                parts.commit(chunk.end, own.totals, own.rejected)
        parts.finish(file.join)
        return BatchReport(epath.Path(output), epath.Path(parts.rejected), parts.totals)


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of every request.

    Attributes:
      types: columns of the results, see `jobs.answering.Result`.
      described: what results depend on.
    """

    task: str
    job: str
    types: Mapping[str, str]
    described: Mapping[str, Any]


def _asked(service: Service, task: str, job: str | None) -> _Asked:
    task = service.task(task, job)
    job = service.job(task, job)
    answerer = service.answerer(job)
    described = service.describe(task, job)
    return _Asked(task, job, answerer.column_types, described)


@dataclasses.dataclass(slots=True)
class _Answered:
    """What became of a chunk.

    Attributes:
      kept: which of its rows have results.
      columns: their results, one per kept row.
      rejected: lines of the side file.
    """

    kept: list[int] = dataclasses.field(default_factory=list)
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    rejected: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    totals: Totals = dataclasses.field(default_factory=Totals)


def _answered(asked: _Asked, service: Service, chunk: Chunk) -> _Answered:
    found, accepted = _Answered(), list[Accepted]()
    for index, row in enumerate(chunk.rows):
        problem = row.problem
        if row.values is not None:
            answer = service.accept(row.values, task=asked.task, job=asked.job, number=row.number)
            if isinstance(answer, Accepted):
                accepted.append(answer)
                found.kept.append(index)
                found.totals.count_ignored(answer.request.ignored)
                found.totals.gaps.update(answer.request.gaps)
                continue
            problem = answer
        assert problem is not None
        found.totals.rejected[problem.kind] += 1
        reason = {"kind": problem.kind, "reason": str(problem)}
        found.rejected.append({"row": row.number, **reason, "raw": row.shown()})
    rows = [result.columns() for result in service.answer(accepted)]
    found.columns = {name: [row[name] for row in rows] for name in asked.types}
    found.totals.answered = len(rows)
    return found
