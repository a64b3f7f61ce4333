"""What the sub-commands of `m6rec` run, each with its parsed arguments.

Heavy libraries are imported inside, so that `m6rec --help` answers at once. A function returns the
exit status, or None for 0.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.atomic import check_output
from m6rec_jax.io.buckets import bucket_copies, check_writable, in_bucket, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.io.json_text import json_text

if TYPE_CHECKING:
    from m6rec_jax.data.prepared import Prepared
    from m6rec_jax.engine.packed_file import Packed

EXIT_DOES_NOT_FIT = 1
# Of a run that is worse than the one that it is compared with.
EXIT_HAS_LOST = 1
# Of a listing that is complete but for tasks which cannot be read.
EXIT_DAMAGED = 1
EXIT_OF_SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


# Macros that name what a command reads.
_READ = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "BANK", "PREPARED", "ITEMS", "INDEX")


def _look_first(
    args: argparse.Namespace, *defaults: str, reads: Sequence[str] = _READ
) -> Mapping[str, Any]:
    """Says what is wrong with the settings before libraries are imported, which takes long.

    Args:
      args: of a command that takes gin.
      defaults: gin files that are read before the user's.
      reads: macros that name files or folders, which must be there.

    Returns:
      The value of each macro, as far as it is no reference.
    """
    from m6rec_jax import configuration

    args.gin_file = [*defaults, *(args.gin_file or ())]
    parsed = configuration.check_config(args.gin_file, args.gin_bindings)
    for name in reads:
        value = parsed.values.get(name)
        if isinstance(value, str) and value and not in_bucket(value):
            _check_there(Path(value).expanduser(), f"{parsed.macros[name]}: {name} = {value!r}")
    return parsed.values


def _check_vocabulary(args: argparse.Namespace) -> None:
    """Says what a run on own data lacks (tasks.own_data) before libraries are imported."""
    from m6rec_jax import configuration
    from m6rec_jax.pipeline import locations

    parsed = configuration.check_config(args.gin_file, args.gin_bindings)
    dataset = parsed.parameter("own_task.dataset", None)
    elsewhere = ("data_dir.path", "vocabulary_file.path", "vocabulary_file.shared")
    if not isinstance(dataset, str) or any(name.endswith(elsewhere) for name in parsed.parameters):
        return
    split = parsed.parameter("own_task.split", locations.DEFAULT_SPLIT)
    locations.prepared(dataset, split)
    run = Path(str(parsed.values.get("MODEL_DIR")), "inference", "vocabulary.model")
    if not run.is_file():
        locations.load_vocabulary(dataset, parsed.parameter("own_task.vocabulary_split", split))


def _check_there(path: Path, what: str) -> None:
    if not path.exists():
        near = [own.name for own in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{what}: nothing is there{did_you_mean(path.name, near)}")


def _configure(args: argparse.Namespace) -> None:
    from m6rec_jax import configuration

    configuration.parse_config(args.gin_file, args.gin_bindings)


def _configure_together(args: argparse.Namespace, *, heed_preemption: bool = False) -> None:
    """`_configure`, and joins the other processes of the run if there are any."""
    from m6rec_jax.sharding.processes import join_processes

    _configure(args)
    join_processes(heed_preemption=heed_preemption)


def _print_once(result: object) -> None:
    """Prints in one of the run's processes."""
    import jax

    if jax.process_index() == 0:
        print(result)


def run_data_fetch(args: argparse.Namespace) -> None:
    from m6rec_jax.data.sources import fetch

    print(fetch(args.name))


def run_data_import(args: argparse.Namespace) -> None:
    from m6rec_jax.data.imports.folder import import_dataset

    for line in import_dataset(
        args.format, args.source, args.output, name=args.name, at_least=args.at_least
    ):
        print(line)


class _DataKind(NamedTuple):
    """What a folder of data may hold; without a summary `check` takes it for a data set."""

    contents: str
    prepare: Callable[..., Prepared]
    summary: Callable[[Path], str] | None


def _data_kinds() -> dict[str, _DataKind]:
    """By the file that describes the folder. Their settings are known to gin from then on."""
    from m6rec_jax.data import corpora, dialogues, prepare, reviews, schema

    return {
        corpora.CORPUS_FILE: _DataKind("texts", corpora.prepare_corpus, corpora.corpus_summary),
        reviews.REVIEWS_FILE: _DataKind("reviews", reviews.prepare_reviews, reviews.review_summary),
        dialogues.DIALOGUES_FILE: _DataKind(
            "dialogues", dialogues.prepare_dialogues, dialogues.dialogue_summary
        ),
        schema.SPEC_FILE: _DataKind("users, items and events", prepare.prepare, None),
    }


def _data_kind(folder: Path) -> _DataKind:
    """The kind of data in a folder; raises DataError where no file describes them."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; `m6rec data fetch` makes those of public data sets"
        )
    kinds = _data_kinds()
    for name, kind in kinds.items():
        if (folder / name).is_file():
            return kind
    known = ", ".join(f"{name} ({kind.contents})" for name, kind in kinds.items())
    raise DataError(
        f"{folder} has no file that says what is in it: {known}. tasks/README.md and "
        "docs/data_sets.md show them"
    )


def run_data_check(args: argparse.Namespace) -> None:
    from m6rec_jax.data.check import check_dataset
    from m6rec_jax.data.quarantine import clean_folder
    from m6rec_jax.data.schema import SPEC_FILE

    with bucket_copies() as copies:
        folder = copies.fetch(args.folder)
        summary = _data_kind(folder).summary
        if summary is not None:
            if args.quarantine is not None or args.json is not None:
                raise ConfigError(
                    "--quarantine and --json are for users, items and events, not texts"
                )
            print(copies.shown(summary(folder)))
            return
        written = [path_of(path) for path in (args.json, args.quarantine) if path is not None]
        for path in written:
            check_writable(path.parent)
            check_output(copies.of(path))
        rejected = None
        if args.quarantine is not None:
            rejected = copies.of(args.quarantine)
            written.append(clean_folder(path_of(args.quarantine)))
            copies.fetch(written[-1] / SPEC_FILE)
        report = check_dataset(folder, rejected, progress=True)
        print(copies.shown(report.render()))
        if args.json is not None:
            copies.of(args.json).write_text(copies.shown(report.to_json()) + "\n")
        for path in written:
            copies.store(path, last=SPEC_FILE)
        if not report.ok:
            in_rows = all(own.rows for own in report.problems if own.severity == "error")
            if report.clean is not None and in_rows:
                return  # all that is wrong was set aside
            mend = "; --quarantine FILE sets the rows aside and writes the rest"
            raise DataError(
                f"{folder} has errors{mend if any(report.num_rejected.values()) else ''}"
            )


def run_data_prepare(args: argparse.Namespace) -> None:
    _configure_data(args)
    from m6rec_jax.data.prepared import folder_of
    from m6rec_jax.pipeline.locations import data_dir, dataset_folder
    from m6rec_jax.requests.answered import prepare_requests

    if args.folder is None and args.requests is None:
        raise ConfigError("name a folder, or a file of requests with answers: --requests FILE")
    with bucket_copies() as copies:
        folder = None if args.folder is None else copies.fetch(dataset_folder(args.folder))
        if args.requests is not None or folder is None:
            if args.engine == "ray":
                raise ConfigError("--engine ray is for users, items and events, not requests")
            prepared = prepare_requests(copies.fetch(args.requests), data_dir(), folder)
        elif (kind := _data_kind(folder)).summary is None:
            prepared = kind.prepare(folder, data_dir(), engine=args.engine)
        elif args.engine == "ray":
            raise ConfigError("--engine ray is for users, items and events, not texts")
        else:
            prepared = kind.prepare(folder, data_dir())
    names = (prepared.manifest["dataset"], prepared.manifest["split"]["name"])
    print(folder_of(prepared.data_dir, *names))


def run_data_update(args: argparse.Namespace) -> None:
    from m6rec_jax.data.update import update
    from m6rec_jax.pipeline.locations import data_dir, dataset_folder

    _configure_data(args)
    prepared = update(dataset_folder(args.folder), data_dir())
    print(prepared.updates[-1] if prepared.updates else "nothing is new")


def _configure_data(args: argparse.Namespace) -> None:
    """`_configure` for `data` and `vocab train`, which may share a gin file."""
    _look_first(args, reads=())
    from m6rec_jax.data import update, vocabulary_text  # noqa: F401
    from m6rec_jax.pipeline import locations  # noqa: F401
    from m6rec_jax.requests import answered  # noqa: F401

    _data_kinds()
    _configure(args)


def run_data_show(args: argparse.Namespace) -> None:
    from m6rec_jax.data.prepared import CATALOGUE, Prepared
    from m6rec_jax.data.show import show_catalogue, show_rows
    from m6rec_jax.pipeline.locations import data_dir
    from m6rec_jax.text.vocabulary import Vocabulary

    prepared = Prepared.find(data_dir(), args.name)
    views = prepared.manifest["views"] if args.view is None else [args.view]
    counts = {view: prepared.num_rows(view) for view in views}
    # tensorflow takes seconds to import.
    from m6rec_jax.pipeline.prepared_rows import read_rows

    count = None
    if prepared.vocabulary_file.is_file():
        vocabulary = Vocabulary(prepared.vocabulary_file)
        count = lambda text: len(vocabulary.encode_array(text))  # noqa: E731
    else:
        print(f"no vocabulary at {prepared.vocabulary_file}: tokens are not counted")
    for view, rows in counts.items():
        print(f"{view}: {', '.join(f'{part} {number:,}' for part, number in rows.items())} rows")
        part = args.part if args.part in rows else next(iter(rows))
        if rows[part]:
            found = read_rows(prepared, view, part)
            print(*show_rows(view, found, args.rows, count), sep="\n")
    if (prepared.folder / CATALOGUE).is_file():
        print(*show_catalogue(prepared.catalogue(), args.rows), sep="\n")


def run_data_init(args: argparse.Namespace) -> None:
    from m6rec_jax.data.first_draft import draft_dataset

    print(*draft_dataset(args.tables, args.name, args.at_least), sep="\n")


def run_data_sample(args: argparse.Namespace) -> None:
    _look_first(args, reads=())
    from m6rec_jax.data.sampling import sample_dataset
    from m6rec_jax.pipeline.locations import dataset_folder, tables_dir

    _configure(args)
    with bucket_copies() as copies:
        print(sample_dataset(copies.fetch(dataset_folder(args.folder)), tables_dir()))


def run_vocab_train(args: argparse.Namespace) -> None:
    _configure_data(args)
    from m6rec_jax.configuration import bound
    from m6rec_jax.data.vocabulary_text import train_on_prepared
    from m6rec_jax.pipeline import locations

    trained = train_on_prepared(locations.data_dir())
    print(trained.model_file)
    dataset = bound("train_on_prepared.dataset")
    split = bound("train_on_prepared.split", locations.DEFAULT_SPLIT)
    if dataset is None or str(locations.vocabulary_file(dataset, split)) != trained.model_file:
        return  # of several data sets, or tasks look elsewhere
    import gin

    with gin.unlock_config():  # tasks are configurable, too
        from m6rec_jax.pipeline.fitted_settings import has_histories, measured_lengths
    if has_histories(locations.prepared(dataset, split)):
        found = measured_lengths(dataset, split)
        print(
            f"rows of {found['inputs']} + {found['targets']} tokens hold nine histories in ten and "
            f"99 candidates in 100: TASK_FEATURE_LENGTHS = {found}, as gin_configs/own_data has it"
        )


def run_train(args: argparse.Namespace) -> int:
    _look_first(args, reads=["INITIAL_CHECKPOINT_PATH"])
    _check_vocabulary(args)
    from m6rec_jax.configuration import macro, settle_measured
    from m6rec_jax.training.loop import train

    _configure_together(args, heed_preemption=True)
    settle_measured()
    with _alone_in(macro("MODEL_DIR", "")):
        result = train()
    # Scripts must not take a run that a signal stopped for finished.
    return EXIT_OF_SIGNALS.get(result.stopped_by, 0)


def _alone_in(model_dir: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a second run out of a folder: it would remove unfinished checkpoints.

    A bucket has no locks; there `tpu_scripts` start one run per host.
    """
    import jax

    from m6rec_jax.io.buckets import in_bucket
    from m6rec_jax.io.locks import locked_folder

    if not model_dir or in_bucket(model_dir) or jax.process_index() != 0:
        return contextlib.nullcontext()
    return locked_folder(Path(model_dir), f"training in {model_dir}")


def _look_at_run(args: argparse.Namespace, default: str = "gin_configs/runs/eval.gin") -> None:
    """`_look_first` for a task on a run: where no gin file names one, that which it was trained on.

    Args:
      args: of a command that takes gin.
      default: what is then read before the run's own configuration and the files that are given.
    """
    from m6rec_jax.config_file import CONFIG_FILE
    from m6rec_jax.configuration import check_config, macros_of

    if "MIXTURE_OR_TASK_NAME" in macros_of(args.gin_file):
        _look_first(args)
        return
    of_run = [binding for binding in args.gin_bindings if binding.startswith("MODEL_DIR =")]
    run = check_config((), of_run).values.get("MODEL_DIR")
    if run is None:
        raise ConfigError(
            f"m6rec {args.command} takes --gin.MODEL_DIR=RUN, whose task it knows; a --gin_file "
            "FILE may name another one"
        )
    config = Path(run, CONFIG_FILE)
    _check_there(Path(run), f"--gin.MODEL_DIR={run}")
    if not config.is_file():
        raise ConfigError(
            f"{run} has no {CONFIG_FILE}, which says what a run was trained on: name its task with "
            f"--gin_file FILE ({default} says what stands there)"
        )
    _look_first(args, default, str(config), reads=())


def run_eval(args: argparse.Namespace) -> int | None:
    _look_at_run(args)
    from m6rec_jax.evaluation.checkpoint_evaluation import evaluate
    from m6rec_jax.metrics.paired import PairedDifference

    _configure_together(args)
    metrics = evaluate() if args.against is None else evaluate(against=str(args.against))
    _print_once(json_text(metrics, indent=2))
    gains = [name for name in metrics if name.split("/")[-1] == "gain"]
    lost = any(PairedDifference(metrics[n], metrics[f"{n}_error"]).is_loss for n in gains)
    return EXIT_HAS_LOST if lost else None


def run_calibrate(args: argparse.Namespace) -> None:
    _look_at_run(args, "gin_configs/runs/calibrate.gin")
    from m6rec_jax.evaluation.calibration import calibrate, report

    _configure_together(args)
    loss = {} if args.max_loss is None else {"max_loss": args.max_loss}
    _print_once(report(calibrate(**loss)))


def run_report(args: argparse.Namespace) -> None:
    from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
    from m6rec_jax.run_report import report_on_run

    if args.output is not None:
        check_output(args.output)
    with own_vocabulary(args.folder):
        page = report_on_run(
            args.folder,
            args.output,
            gin_files=args.gin_file,
            bindings=args.gin_bindings,
            split=args.split,
            rows=args.rows,
        )
    print(page)


def run_export(args: argparse.Namespace) -> None:
    from m6rec_jax.export.command import export

    results = export(
        args.run_folder,
        args.output,
        args.format,
        bank=args.bank,
        index=args.index,
        platforms=args.platforms,
        split=args.split,
        rows=args.rows,
        num_beams=args.beams,
        precision=args.precision,
        runtime=args.runtime,
        gin_files=args.gin_file or (),
        bindings=args.gin_bindings,
    )
    for name, result in results.items():
        equal = "" if result["equal"] == 1 else f", {result['equal']:.2%} of its tokens are equal"
        print(
            f"{name}: {result['rows']} rows, largest difference "
            f"{result['largest_difference']:.2g} of the largest number{equal}"
        )
    print(args.output)


def run_edge_bench(args: argparse.Namespace) -> None:
    from m6rec_jax.export.edge_bench import bench, table

    try:
        found = bench(args.path, args.threads)
    except ImportError as error:
        raise ConfigError(
            f"m6rec edge needs the package {error.name}: pip install 'm6rec_jax[litert]'"
        ) from error
    print(table(found))
    if args.json is not None:
        args.json.write_text(json_text(found, indent=2) + "\n")


def run_infer(args: argparse.Namespace) -> None:
    if args.requests is not None:
        _infer_requests(args)
        return
    if args.index or args.shard or args.engine != "process":
        raise ConfigError("m6rec infer: --index, --shard and --engine go with --requests FILE")
    _look_at_run(args)
    from m6rec_jax.evaluation.checkpoint_evaluation import infer

    _configure_together(args)
    paths = infer() if args.output is None else infer(output=args.output)
    _print_once("\n".join(map(str, paths)))


def _infer_requests(args: argparse.Namespace) -> None:
    if args.output is None:
        raise ConfigError("m6rec infer --requests FILE needs --output FILE, too")
    _look_first(args, "gin_configs/runs/infer_requests.gin")
    if not in_bucket(args.requests) and not any(sign in args.requests for sign in "*?["):
        _check_there(Path(args.requests), f"--requests {args.requests}")
    from m6rec_jax.requests.files import Shard
    from m6rec_jax.serving.batch_inference import infer_requests

    shard = None if args.shard is None else Shard.parse(args.shard)
    # Parts and workers know nothing of each other.
    alone = shard is not None or args.engine == "ray"
    (_configure if alone else _configure_together)(args)
    index = {} if args.index is None else {"index": str(args.index)}
    reports = infer_requests(args.requests, args.output, shard=shard, engine=args.engine, **index)
    print("\n".join(map(str, reports)))


def run_chat(args: argparse.Namespace) -> None:
    _look_first(args, "gin_configs/runs/chat.gin")
    from m6rec_jax.serving.chat import chat

    _configure(args)
    chat(user=args.user)


def run_serve(args: argparse.Namespace) -> None:
    _look_first(args, "gin_configs/runs/serve.gin")
    try:
        from m6rec_jax.server.access import Tokens
        from m6rec_jax.server.launch import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"m6rec serve needs the package {error.name}: pip install 'm6rec_jax[serve]'"
        ) from error

    _configure(args)
    serve(
        args.folder,
        bank=args.bank,
        index=_indexes(args.index or ()),
        host=args.host,
        port=args.port,
        tokens=Tokens.find(args.read_token_file, args.admin_token_file),
        engine=args.engine,
    )


def _indexes(given: Sequence[str]) -> str | dict[str, str] | None:
    """One folder, or one for each task: DIR or TASK=DIR."""
    if len(given) < 2 and not any("=" in one for one in given):
        return str(Path(given[0]).expanduser()) if given else None
    found: dict[str, str] = {}
    for one in given:
        task, equals, folder = one.partition("=")
        if not equals or task in found:
            raise ConfigError(f"--index {one}: of several indexes each is --index TASK=DIR")
        found[task] = str(Path(folder).expanduser())
    return found


def run_index_build(args: argparse.Namespace) -> None:
    _look_first(args, "gin_configs/runs/build_index.gin")
    from m6rec_jax.serving.build_index import build_index

    (_configure if args.engine == "ray" else _configure_together)(args)
    manifest = build_index(args.output, engine=args.engine)
    print(f"{args.output}: {manifest.count:,} items, {manifest.dim} numbers each")


def run_index_segments(args: argparse.Namespace) -> None:
    _look_first(args, "gin_configs/runs/build_segments.gin")
    from m6rec_jax.serving.build_segments import build_segments

    _configure(args)
    manifest = build_segments(args.output)
    print(
        f"{args.output}: {manifest.count:,} candidates, {manifest.tokens:,} tokens of "
        f"{manifest.width} numbers each, {manifest.dtype}"
    )


def run_convert(args: argparse.Namespace) -> None:
    from m6rec_jax.convert import convert

    report = convert(
        args.source,
        args.target,
        vocabulary_file=args.vocabulary,
        model_type=args.model_type,
        dry_run=args.dry_run,
    )
    print(report)


def run_prompts_list(args: argparse.Namespace) -> int:
    from m6rec_jax.bank.folder import BankFolder
    from m6rec_jax.bank.report import manifests_json, read_manifests, tasks_table

    found = read_manifests(BankFolder(args.bank))
    print(manifests_json(found) if args.json else tasks_table(found, args.bank))
    damaged = any(isinstance(manifest, CheckpointError) for manifest in found.values())
    return EXIT_DAMAGED if damaged else 0


def run_prompts_add(args: argparse.Namespace) -> None:
    from m6rec_jax.bank.export import add_prompts

    for folder in add_prompts(
        args.bank, args.source, tasks=args.task, name=args.name, step=args.step
    ):
        print(folder)


def run_prompts_remove(args: argparse.Namespace) -> None:
    from m6rec_jax.bank.folder import BankFolder

    BankFolder(args.bank).remove(args.name)


def run_prompts_inspect(args: argparse.Namespace) -> None:
    from m6rec_jax.bank.folder import BankFolder
    from m6rec_jax.bank.report import inspect_task, manifests_json

    bank = BankFolder(args.bank)
    report = inspect_task(bank, args.name)  # also where JSON is wanted: it reads the tensors
    print(manifests_json({args.name: bank.manifest(args.name)}) if args.json else report)


def run_compress_structure(args: argparse.Namespace) -> None:
    from m6rec_jax.compression.structure import Sizes, compress_structure

    sizes = Sizes(args.heads, args.mlp_dim, args.encoder_layers, args.decoder_layers)
    config = compress_structure(
        args.run_folder,
        args.output,
        sizes,
        batches=args.batches,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
    )
    for name in dataclasses.asdict(sizes):
        print(f"ModelConfig.{name} = {getattr(config, name)}")
    print(args.output)


def _carried_data(packed: Packed) -> dict[str, bytes]:
    """What requests to a packed model's tasks are rendered with, as files of it."""
    from m6rec_jax.data.sources import default_cache_dir
    from m6rec_jax.engine.model_folder import DATA_FOLDER, DATASETS_FOLDER
    from m6rec_jax.requests.serving_data import files_without_users

    names = [Path(file).stem for file in packed.files if DATASETS_FOLDER in Path(file).parts]
    return {
        f"{DATA_FOLDER}/{name}/{file}": data
        for name in names
        for file, data in files_without_users(default_cache_dir() / name).items()
    }


def run_compress_pack(args: argparse.Namespace) -> None:
    from m6rec_jax.checkpoints.trees import flatten
    from m6rec_jax.engine.model_folder import packed_of
    from m6rec_jax.engine.packed_file import write_packed

    check_output(args.output)
    packed = packed_of(args.run_folder)
    if args.limits:
        packed = dataclasses.replace(packed, about={**packed.about, "limits": args.limits})
    if args.catalogue:
        packed = dataclasses.replace(packed, files={**packed.files, **_carried_data(packed)})
    write_packed(args.output, packed)
    leaves = flatten(packed.variables).values()
    left = sum(int((leaf != 0).sum()) for leaf in leaves)
    print(
        f"{args.output}: {args.output.stat().st_size:,} bytes, {left:,} numbers that are not zero "
        f"of {sum(leaf.size for leaf in leaves):,}"
    )


def run_compress_vocabulary(args: argparse.Namespace) -> None:
    from m6rec_jax.compression.vocabulary import compress_vocabulary

    made = compress_vocabulary(
        args.run_folder,
        args.output,
        args.size,
        rows=args.rows,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
    )
    print(f"{made.num_pieces} pieces, ModelConfig.vocab_size = {made.size}")
    print(args.output)


def run_compile(args: argparse.Namespace) -> int:
    from m6rec_jax.compilation.command import compile_run

    if args.json is not None:
        check_output(args.json)
    report = compile_run(
        args.topology,
        slices=args.slices,
        model=args.model,
        tuning=args.tuning,
        sharding=args.sharding,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
        steps=tuple(filter(None, args.steps.split(","))),
        hlo_folder=args.hlo,
    )
    print(report.render())
    if args.json is not None:
        args.json.write_text(report.to_json(), encoding="utf-8")
    return 0 if report.fits else EXIT_DOES_NOT_FIT


def run_demo(args: argparse.Namespace) -> None:
    of_edge, of_training = ("liked", "disliked", "count"), ("output", "seed")
    given = {name: value for name in (*of_edge, *of_training) if (value := getattr(args, name))}
    for name in set(given) & set(of_training if args.edge else of_edge):
        raise ConfigError(
            f"--{name} is for `m6rec demo` {'without' if args.edge else 'with'} --edge"
        )
    if args.edge:
        from m6rec_jax.edge_demo import LIKED, run_edge_demo

        run_edge_demo(args.liked or LIKED, args.disliked or (), args.count or 10)
        return
    from m6rec_jax import demo

    demo.run_demo(args.output or Path("runs/demo"), seed=args.seed or 0)


def run_quickstart(args: argparse.Namespace) -> None:
    from m6rec_jax.quickstart import run_quickstart as run

    output = args.output or Path("runs") / args.folder.resolve().name
    output.mkdir(parents=True, exist_ok=True)
    with _alone_in(str(output)):
        run(args.folder, output, minutes=args.minutes, seed=args.seed)


def run_params(args: argparse.Namespace) -> None:
    if args.folder is None:
        if not args.gin_file:
            raise ConfigError("m6rec params takes --gin_file FILE (a model's), or RUN")
        _look_first(args, reads=())
    from m6rec_jax import configuration
    from m6rec_jax.checkpoints.location import locate, read_manifest
    from m6rec_jax.engine.model_folder import load_model
    from m6rec_jax.training.parameter_table import count_parameters

    if args.folder is not None:
        found = load_model(args.folder)
        trains = read_manifest(locate(args.folder)).trainable if args.folder.is_dir() else None
        table = count_parameters(found.model.config, trains or "all", values=found.variables)
        print(table.render())
        return
    _configure(args)
    model = configuration.macro("MODEL")
    table = count_parameters(
        model.config,
        configuration.macro("TRAINABLE", "all"),
        configuration.bound("Step.frozen_dtype"),
    )
    print(table.render())


def run_doctor(args: argparse.Namespace) -> None:
    from m6rec_jax.doctor import report

    print(report())
