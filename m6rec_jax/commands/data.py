"""`m6rec data` and `m6rec vocab`."""

import argparse
from typing import Any

from m6rec_jax.commands.arguments import (
    add_command,
    existing_path,
    local_path,
    path_or_address,
    takes_engine,
    takes_gin,
)
from m6rec_jax.commands.settings import check_there, configure, look_first
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import check_output
from m6rec_jax.io.buckets import bucket_copies, check_writable, path_of
from m6rec_jax.io.closest import did_you_mean


def add_commands(commands: Any) -> None:
    data = commands.add_parser("data", help="get, check and prepare data sets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = add_command(actions, "fetch", run_data_fetch)
    fetch.add_argument("name", help="for instance movielens-100k; a wrong name lists them all")
    imported = add_command(actions, "import", run_data_import)
    imported.add_argument(
        "format",
        metavar="FORMAT",
        help="recbole (NAME.inter, NAME.item, perhaps NAME.user) or sequences (sequences.txt with "
        "a line 'user item item ...' for each user, and items.tsv), or requests (with answers)",
    )
    imported.add_argument(
        "source",
        type=local_path,
        metavar="SOURCE",
        help="the folder that holds these files, or the file of requests, .jsonl or .parquet",
    )
    imported.add_argument("output", type=local_path, metavar="OUTPUT", help="a new folder")
    _takes_draft(imported)
    imported.add_argument(
        "--dataset",
        type=local_path,
        metavar="FOLDER",
        help="of requests: its dataset.json has the columns and the template (default: users and "
        "items are plain texts)",
    )
    check = add_command(actions, "check", run_data_check)
    check.add_argument("folder", type=path_or_address)
    check.add_argument(
        "--clean",
        type=path_or_address,
        metavar="NEW_FOLDER",
        help="write the data set without the rows that have errors here, and those to rejected.csv",
    )
    check.add_argument("--json", type=path_or_address, help="write the report to this file, too")
    prepare = add_command(actions, "prepare", run_data_prepare)
    prepare.add_argument(
        "folder",
        type=path_or_address,
        help="a folder of a data set, of texts, reviews or dialogues, or the name of a fetched one",
    )
    takes_engine(prepare)
    takes_gin(prepare)
    update = add_command(actions, "update", run_data_update)
    update.add_argument(
        "folder", type=local_path, help="a data set folder, or the name of a fetched data set"
    )
    takes_gin(update)
    init = add_command(actions, "init", run_data_init)
    init.add_argument(
        "tables",
        type=existing_path,
        nargs="+",
        metavar="TABLE",
        help="of events, of items and perhaps of users: CSV or Parquet files in one folder, or "
        "that folder",
    )
    _takes_draft(init)
    show = add_command(actions, "show", run_data_show)
    show.add_argument("name", help="of a prepared data set, such as corner-shop.leave_one_out")
    show.add_argument("--view", help="such as groups (default: all that are prepared)")
    show.add_argument("--part", help="of the split (default train, or else a view's first one)")
    show.add_argument("--rows", type=int, default=2, help="of each view (default 2)")
    sample = add_command(actions, "sample", run_data_sample)
    sample.add_argument(
        "folder", type=path_or_address, help="a data set folder, or the name of a fetched data set"
    )
    takes_gin(sample)

    vocab = commands.add_parser("vocab", help="train a vocabulary")
    actions = vocab.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = add_command(actions, "train", run_vocab_train)
    takes_gin(train)


def _takes_draft(parser: argparse.ArgumentParser) -> None:
    """Adds what decides a drafted `dataset.json`."""
    parser.add_argument("--name", help="of the data set (default: what its source is called)")
    parser.add_argument(
        "--at-least",
        type=float,
        metavar="VALUE",
        help="from which value an event is a positive (default: the one that divides the events "
        "most evenly; it is printed)",
    )


def run_data_fetch(args: argparse.Namespace) -> None:
    """download a public data set into a canonical folder"""
    from m6rec_jax.data.getting.sources import fetch

    print(fetch(args.name))


def run_data_import(args: argparse.Namespace) -> None:
    """make a data set folder of files in another format (recbole, sequences, requests)"""
    check_there(args.source, str(args.source))
    from m6rec_jax.data.getting.imports import import_dataset
    from m6rec_jax.requests.answered import import_requests

    files = args.source, args.output
    if args.format == "requests":
        lines = import_requests(*files, dataset=args.dataset, name=args.name)
    else:
        lines = import_dataset(args.format, *files, name=args.name, at_least=args.at_least)
    print(*lines, sep="\n")


def run_data_check(args: argparse.Namespace) -> None:
    """report the problems of a data set folder"""
    from m6rec_jax.data.dataset.check import check_dataset
    from m6rec_jax.data.dataset.schema import SPEC_FILE
    from m6rec_jax.data.rendering.kinds import open_corpus

    with bucket_copies() as copies:
        folder = copies.fetch(args.folder)
        if (corpus := open_corpus(folder)) is not None:
            if args.clean is not None or args.json is not None:
                raise ConfigError("--clean and --json are for users, items and events, not texts")
            print(copies.shown(corpus.summary()))
            return
        written = [path_of(path) for path in (args.json, args.clean) if path is not None]
        for path in written:
            check_writable(path.parent)
        if args.json is not None:
            check_output(copies.of(args.json))
        clean = args.clean and copies.fetch(path_of(args.clean) / SPEC_FILE).parent
        report = check_dataset(folder, clean)
        print(copies.shown(report.render()))
        if args.json is not None:
            copies.of(args.json).write_text(copies.shown(report.to_json()) + "\n")
        for path in written:
            copies.store(path, last=SPEC_FILE)
        errors = [problem for problem in report.problems if problem.severity == "error"]
        if report.clean is not None:  # what is wrong with single rows was set aside
            errors = [problem for problem in errors if not problem.rows]
        if errors:
            hint = ""
            if args.clean is None and any(report.num_rejected.values()):
                hint = "; --clean NEW_FOLDER sets single rows aside and writes the rest"
            raise DataError(f"{args.folder} has errors, see above{hint}")


def run_data_prepare(args: argparse.Namespace) -> None:
    """render a data set's text as a TFDS data set"""
    _configure_data(args)
    from m6rec_jax.data import prepare
    from m6rec_jax.data.rendering import corpora, kinds
    from m6rec_jax.pipeline.locations import data_dir, dataset_folder

    with bucket_copies() as copies:
        folder = copies.fetch(dataset_folder(args.folder))
        if (corpus := kinds.open_corpus(folder)) is None:
            prepared = prepare.prepare(folder, data_dir(), engine=args.engine)
        elif args.engine == "ray":
            raise ConfigError("--engine ray is for users, items and events, not texts")
        else:
            prepared = corpora.prepare_corpus(corpus, data_dir())
    print(prepared.location)


def run_data_update(args: argparse.Namespace) -> None:
    """add the new files of a prepared data set as a part that is trained on"""
    from m6rec_jax.data.update import update
    from m6rec_jax.pipeline.locations import data_dir, dataset_folder

    _configure_data(args)
    prepared = update(dataset_folder(args.folder), data_dir())
    print(prepared.updates[-1] if prepared.updates else "nothing is new")


def _configure_data(args: argparse.Namespace) -> None:
    """`configure` for `data` and `vocab train`, which may share a gin file."""
    look_first(args, reads=())
    from m6rec_jax.data import prepare, update  # noqa: F401
    from m6rec_jax.data.rendering import kinds, vocabulary_text  # noqa: F401
    from m6rec_jax.pipeline import locations  # noqa: F401

    configure(args)


def run_data_show(args: argparse.Namespace) -> None:
    """rows of prepared data as a model reads them, and items that read the same"""
    from m6rec_jax.data.dataset.show import show_catalogue, show_rows
    from m6rec_jax.data.store.prepared import CATALOGUE, Prepared
    from m6rec_jax.data.store.tfrecords import read_shards
    from m6rec_jax.pipeline.locations import data_dir
    from m6rec_jax.text.vocabulary import Vocabulary

    prepared = Prepared.find(data_dir(), args.name)
    views = prepared.manifest.views if args.view is None else [args.view]
    counts = {view: prepared.num_rows(view) for view in views}
    parts = list(dict.fromkeys(part for rows in counts.values() for part in rows))
    if args.part not in (None, *parts):
        raise DataError(
            f"{prepared.folder} has no part {args.part!r}{did_you_mean(args.part, parts)} "
            f"(known: {', '.join(parts)})"
        )
    count = None
    if prepared.vocabulary_file.is_file():
        vocabulary = Vocabulary(prepared.vocabulary_file)
        count = lambda text: len(vocabulary.encode_array(text))  # noqa: E731
    else:
        print(f"no vocabulary at {prepared.vocabulary_file}: tokens are not counted")
    for view, rows in counts.items():
        print(f"{view}: {', '.join(f'{part} {number:,}' for part, number in rows.items())} rows")
        part = args.part or ("train" if "train" in rows else next(iter(rows), ""))
        if rows.get(part):
            found = read_shards(prepared.tfds_folder(view), view, part)
            print(*show_rows(view, found, args.rows, count), sep="\n")
    if (prepared.folder / CATALOGUE).is_file():
        print(*show_catalogue(prepared.catalogue(), args.rows), sep="\n")


def run_data_init(args: argparse.Namespace) -> None:
    """draft a dataset.json for tables of your own, and say what was guessed"""
    from m6rec_jax.data.getting.init import init_dataset

    print(*init_dataset(args.tables, args.name, args.at_least), sep="\n")


def run_data_sample(args: argparse.Namespace) -> None:
    """a smaller data set folder, of some of the users"""
    look_first(args, reads=())
    from m6rec_jax.data.dataset.sampling import sample_dataset
    from m6rec_jax.pipeline.locations import dataset_folder, tables_dir

    configure(args)
    with bucket_copies() as copies:
        print(sample_dataset(copies.fetch(dataset_folder(args.folder)), tables_dir()))


def run_vocab_train(args: argparse.Namespace) -> None:
    """SentencePiece on the prepared text"""
    _configure_data(args)
    from m6rec_jax.configuration import bound
    from m6rec_jax.data.rendering.vocabulary_text import train_on_prepared
    from m6rec_jax.pipeline import locations

    model_file = train_on_prepared(locations.data_dir())
    print(model_file)
    dataset = bound("train_on_prepared.dataset")
    split = bound("train_on_prepared.split", locations.DEFAULT_SPLIT)
    if dataset is None or str(locations.vocabulary_file(dataset, split)) != model_file:
        return  # of several data sets, or tasks look elsewhere
    import gin

    with gin.unlock_config():  # tasks are configurable, too
        from m6rec_jax.pipeline.fitted_settings import has_histories, measured_lengths
    if has_histories(locations.prepared(dataset, split)):
        found = measured_lengths(dataset, split)
        print(
            f"rows of {found['inputs']} + {found['targets']} tokens hold nine histories in ten and "
            f"99 candidates in 100: TASK_FEATURE_LENGTHS = {found}, as gin_configs/data/any has it"
        )
