"""`m6rec infer --requests FILE`: a file of requests to the same rows with results.

Requests are read in chunks, so memory does not grow with the file; all batches have one shape, so
each program is compiled once. What is finished survives being killed: the same command goes on
(`part_files`). Rows that cannot be answered go to a side file with the reason.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gin
import jax
import pyarrow as pa

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.files import Chunk, Position, open_requests
from m6rec_jax.serving.part_files import PartFiles, Totals, side_files
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.sharding import LogicalRules, data_parallel, make_mesh

log = logging.getLogger(__name__)

Item = TypeVar("Item")

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
    bank: str | None = None,
    task: str = "",
    job: str | None = None,
    step: int | None = None,
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
    """Answers a file of requests (`requests.request` says what one looks like).

    Args:
      requests: `.jsonl` or `.parquet`.
      output: of the same format. `NAME.rejected.jsonl` and `NAME.summary.json` go beside it.
      model_dir, bank, step: see `Service.open`.
      task, job: see `Service.accept`.
      prepared, items, index, approximate, source_buckets, target_buckets: see `ServiceOptions`. For
        'likelihood' `prepared` may be of a data set that the model was not trained on.
      batch_size: rows of a batch, over all devices.
      chunk_size: requests read, answered and committed at a time.
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
    options = ServiceOptions(
        prepared=prepared,
        items=items,
        index=index,
        approximate=approximate,
        batch_sizes=(batch_size,),
        source_buckets=source_buckets,
        target_buckets=target_buckets,
    )
    service = Service.open(
        model_dir,
        bank=bank,
        step=step,
        mesh=make_mesh(),
        rules=data_parallel() if rules is None else tuple(rules),
        options=options,
    )
    return answer_file(service, requests, output, task, job, chunk_size, progress)


def answer_file(
    service: Service,
    requests: Path,
    output: Path,
    task: str = "",
    job: str | None = None,
    chunk_size: int = 1024,
    progress: bool = True,
) -> BatchReport:
    """Answers all requests of a file that have no answer yet; see `infer_requests`."""
    task = service.task(task, job)
    job = service.job(task, job)
    types = service.answerer(job).result.column_types
    file = open_requests(requests, {name: _ARROW_TYPES[kind] for name, kind in types.items()})
    described = {"requests": file_sha256(requests), **service.describe(task, job)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with PartFiles(output, file.suffix, described) as parts:
        if parts.finished:
            log.info("%s is complete already", output)
            return BatchReport(output, parts.rejected, parts.totals)
        if parts.start != Position():
            log.info("going on at row %s", f"{parts.start.row:,}")
        total, unit = file.extent()
        checked = (
            _checked(service, chunk, task, job) for chunk in file.chunks(parts.start, chunk_size)
        )
        with progress_bar(
            total=total,
            initial=file.progress(Position(), parts.start),
            unit="B" if unit == "bytes" else " rows",
            unit_scale=unit == "bytes",
            desc="requests",
            disable=not progress,
        ) as bar:
            for chunk in _one_ahead(checked):
                results = service.answer(chunk.accepted)
                rows = [result.columns() for result in results]
                columns = {name: [row[name] for row in rows] for name in types}
                file.write_part(parts.part, chunk.chunk, chunk.kept, columns)
                bar.update(file.progress(parts.start, chunk.chunk.end))
                parts.commit(chunk.chunk.end, chunk.totals, chunk.rejected)
        if parts.start == Position():
            raise DataError(f"{file.path} has no rows")
        parts.finish(file.join)
        return BatchReport(output, parts.rejected, parts.totals)


@dataclasses.dataclass(frozen=True, slots=True)
class _Checked:
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


def _checked(service: Service, chunk: Chunk, task: str, job: str) -> _Checked:
    found = _Checked(chunk, [], [], [], Totals())
    for index, row in enumerate(chunk.rows):
        problem = row.problem
        if row.values is not None:
            answer = service.accept(row.values, task=task, job=job, number=row.number)
            if isinstance(answer, Accepted):
                found.accepted.append(answer)
                found.kept.append(index)
                found.totals.count_ignored(answer.request.ignored)
                continue
            problem = answer
        assert problem is not None
        found.totals.rejected[problem.kind] += 1
        reason, raw = _plain(str(problem)), _plain(row.shown())
        found.rejected.append(
            {"row": row.number, "kind": problem.kind, "reason": reason, "raw": raw}
        )
    found.totals.answered = len(found.kept)
    return found


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


def _plain(text: str) -> str:
    """Text that can be written as UTF-8: JSON may hold half of a surrogate pair."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
