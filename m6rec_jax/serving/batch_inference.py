"""`m6rec infer --requests FILE`: files of requests to the same rows with results.

Requests are read in chunks, so memory does not grow with the file; all batches have one shape, so
each program is compiled once. What is finished survives being killed: the same command goes on
(`part_files`), in a bucket with the file that was under way. Rows that cannot be answered go to a
side file with the reason. Chunks are answered in this process or by workers of Ray; their order and
what becomes of a row do not depend on which.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gin
import jax
import pyarrow as pa
from etils import epath

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import bucket_copies, bucket_errors, check_writable, in_bucket, path_of
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.workers import RayWorkers, Threads, Workers
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.files import Chunk, Shard, open_requests
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.serving.part_files import Part, Totals, side_files, write_in_parts
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.sharding import LogicalRules, data_parallel

_ARROW_TYPES = {
    "float": pa.list_(pa.float32()),
    "int": pa.list_(pa.int32()),
    "string": pa.list_(pa.string()),
}


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What became of a file of requests.

    Attributes:
      output: has rows with results, in the order of the requests.
      totals: of rows: `answered`, `rejected KIND`, `without GAP` (`Request.gaps`), `ignored FIELD`
        that the data set does not have.
    """

    output: epath.Path
    totals: Totals

    @property
    def rejected(self) -> epath.Path:
        """The side file, JSON lines of `row`, `kind`, `reason`, `raw`."""
        return side_files(self.output)[0]

    def numbers(self, what: str) -> Totals:
        """Rows by what follows a word of `totals`, such as kinds of 'rejected'."""
        parts = ((name.partition(" "), number) for name, number in self.totals.items())
        return Totals({rest: number for (first, _, rest), number in parts if first == what})

    def __str__(self) -> str:
        """The closing line, and others where something was missing or ignored."""
        rejected, without, ignored = (
            ", ".join(f"{name} {n:,}" for name, n in self.numbers(what).most_common())
            for what in ("rejected", "without", "ignored")
        )
        answered, others = self.totals["answered"], self.numbers("rejected").total()
        text = f"{answered + others:,} requests: {answered:,} answered ({self.output}), "
        text += f"{others:,} rejected ({self.rejected}{rejected and ': '}{rejected})"
        if without:
            text += f"\nAnswered with what is known, in rows: {without}"
        return text + f"\nFields that the data set does not have, in rows: {ignored}" * bool(
            ignored
        )


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
      rules: logical-axis rules, by which all devices answer; None: `data_parallel`.
      shard: which part to answer, so that several commands share the work: of one file its rows,
        which may be none, and the output's name says which; of several files every
        `shard.count`-th.
      engine: 'process': this one; 'ray': workers of Ray, see `io.workers.RayWorkers` (gin).
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
    options = ServiceOptions(prepared, items, index, batch_sizes=(batch_size,))
    rules = data_parallel() if rules is None else rules
    make = functools.partial(
        Service.open, model_dir, bank=bank, step=step, rules=rules, options=options
    )
    command = "m6rec infer --engine ray"
    with RayWorkers(command, make) if engine == "ray" else Threads(make()) as workers:
        return [answer_file(workers, *file, task, job, chunk_size, progress) for file in files]


def _files(
    requests: str, output: str, shard: Shard | None
) -> Iterator[tuple[epath.Path, epath.Path, Shard | None]]:
    """Files to read and to write, and which part of each.

    Raises:
      DataError: there is no such file.
      ConfigError: results would have another format, or overwrite the requests.
    """
    source, target = epath.Path(path_of(requests)), epath.Path(path_of(output))
    sources, several = [source], False
    with bucket_errors(requests, "read"):
        if not source.is_file() and (source.is_dir() or any(sign in requests for sign in "*?[")):
            folder, pattern = (source, "*") if source.is_dir() else (source.parent, source.name)
            paths, several = folder.glob(pattern), True
            sources = sorted(path for path in paths if path.suffix in (".jsonl", ".parquet"))
            # A folder of results has side files, too.
            sources = [path for path in sources if not path.name.endswith(".rejected.jsonl")]
            if not sources:
                raise DataError(
                    f"{requests}: there are no .jsonl or .parquet files (a pattern may stand in "
                    "the file's name alone)"
                )
    if several and shard is not None:
        sources, shard = sources[shard.index :: shard.count], None
    for path in sources:
        result = target / path.name if several else target if shard is None else shard.of(target)
        if result.suffix != path.suffix:
            raise ConfigError(
                f"{result}: results are written in the format of the requests, {path.suffix!r}"
            )
        if path.resolve() in (written.resolve() for written in (result, *side_files(result))):
            raise ConfigError(
                f"--output {output} would overwrite {path}, the requests; name another output"
            )
        yield path, result, shard


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
    """Answers all requests of a file that have no answer yet; see `infer_requests`.

    Of files in a bucket there are copies on the local disk meanwhile.
    """
    task, job, types, described = workers.begin(_described, task, job)()
    answer = functools.partial(_answered, task, job, tuple(types))
    with bucket_copies() as copies:
        check_writable(output.parent)
        with bucket_errors(output, "read"):
            finished = in_bucket(output) and output.exists()
        local = copies.of(output)
        local.parent.mkdir(parents=True, exist_ok=True)
        if finished:  # the summary says of what, where there is one
            copies.fetch(side_files(output)[1])
            local.touch()
        source = copies.fetch(requests)
        file = open_requests(source, {name: _ARROW_TYPES[kind] for name, kind in types.items()})
        described = {"requests": file_sha256(source), **described}
        if shard is not None:
            described["shard"] = str(shard)
        start, end = (shard or Shard()).rows(file.num_rows)

        def parts(first: int) -> Iterator[Part]:
            chunks, sent = itertools.tee(file.chunks(first, chunk_size, end))
            rows = {"total": end - start, "initial": first - start, "unit": " rows"}
            with progress_bar(**rows, desc="requests", disable=not progress) as bar:
                for chunk, (kept, columns, rejected, totals) in zip(
                    sent, workers.map(answer, chunks), strict=True
                ):
                    write = functools.partial(
                        file.write_part, chunk=chunk, kept=kept, results=columns
                    )
                    yield Part(write, chunk.end, totals, rejected)
                    bar.update(chunk.end - first)
                    first = chunk.end

        totals = write_in_parts(local, described, parts, file.join, start)
        # The output last: when it is there, everything is.
        for path in () if finished else (*side_files(output), output):
            copies.store(path)
        return BatchReport(epath.Path(output), totals)


def _described(
    service: Service, task: str, job: str | None
) -> tuple[str, str, Mapping[str, str], dict[str, Any]]:
    """Task and job that are meant, types of the columns of results, and what these depend on."""
    task = service.task(task, job)
    job = service.job(task, job)
    handler = service.handler(task, job)
    fingerprints = {"model": service.model.fingerprint(task), "data": handler.data.fingerprint}
    return task, job, handler.column_types, {**fingerprints, "job": job, **handler.describe()}


def _answered(
    task: str, job: str, names: Sequence[str], service: Service, chunk: Chunk
) -> tuple[list[int], dict[str, list[Any]], list[dict[str, Any]], Totals]:
    """Which rows of a chunk have results, these by column, lines of the side file, and totals."""
    kept, accepted, rejected = list[int](), list[Accepted](), list[dict[str, Any]]()
    totals = Totals()
    for index, row in enumerate(chunk.rows):
        answer: Accepted | RejectedRow | None = row.problem
        if row.values is not None:
            answer = service.accept(row.values, task=task, job=job, number=row.number)
        if isinstance(answer, Accepted):
            kept.append(index)
            accepted.append(answer)
            totals.update(f"ignored {name}" for name in answer.request.ignored)
            totals.update(f"without {name}" for name in answer.request.gaps)
        else:
            assert answer is not None
            totals[f"rejected {answer.kind}"] += 1
            rejected.append(row.rejected(answer))
    totals["answered"] = len(accepted)
    rows = [result.values for result in service.answer(accepted)]
    return kept, {name: [row[name] for row in rows] for name in names}, rejected, totals
