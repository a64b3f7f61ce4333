"""Arguments of `m6rec data` and `m6rec vocab`."""

from typing import Any

from m6rec_jax import subcommands
from m6rec_jax.arguments import (
    existing_path,
    local_path,
    path_or_address,
    takes_engine,
    takes_gin,
)


def add_data(commands: Any) -> None:
    """Adds `data` and `vocab` to the sub-commands."""
    data = commands.add_parser("data", help="get, check and prepare data sets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser("fetch", help="download a public data set into a canonical folder")
    fetch.add_argument("name", help="for instance movielens-100k; a wrong name lists them all")
    fetch.set_defaults(run=subcommands.run_data_fetch)
    imported = actions.add_parser(
        "import", help="make a data set folder of files in another format (recbole, sequences)"
    )
    imported.add_argument(
        "format",
        metavar="FORMAT",
        help="recbole (NAME.inter, NAME.item, perhaps NAME.user) or sequences (sequences.txt with "
        "a line 'user item item ...' for each user, and items.tsv)",
    )
    imported.add_argument(
        "source", type=local_path, metavar="SOURCE", help="the folder that holds these files"
    )
    imported.add_argument("output", type=local_path, metavar="OUTPUT", help="a new folder")
    imported.add_argument("--name", help="of the data set (default: what the source is called)")
    imported.add_argument(
        "--at-least",
        type=float,
        metavar="RATING",
        help="from which rating an event is a positive (default: the one that divides the events "
        "most evenly; it is printed)",
    )
    imported.set_defaults(run=subcommands.run_data_import)
    check = actions.add_parser("check", help="report the problems of a data set folder")
    check.add_argument("folder", type=path_or_address)
    check.add_argument("--quarantine", type=path_or_address, help="write rejected rows here")
    check.add_argument("--json", type=path_or_address, help="write the report to this file, too")
    check.set_defaults(run=subcommands.run_data_check)
    prepare = actions.add_parser("prepare", help="render a data set's text as a TFDS data set")
    prepare.add_argument(
        "folder",
        nargs="?",
        type=path_or_address,
        help="a folder of a data set, of texts, reviews or dialogues, or the name of a fetched one",
    )
    prepare.add_argument(
        "--requests",
        type=path_or_address,
        metavar="FILE",
        help="requests with answers, .jsonl or .parquet, in place of tables; columns and template "
        "are those of the folder's dataset.json, or users and items are plain texts",
    )
    takes_engine(prepare)
    takes_gin(prepare)
    prepare.set_defaults(run=subcommands.run_data_prepare)
    update = actions.add_parser(
        "update", help="add the new files of a prepared data set as a part that is trained on"
    )
    update.add_argument(
        "folder", type=local_path, help="a data set folder, or the name of a fetched data set"
    )
    takes_gin(update)
    update.set_defaults(run=subcommands.run_data_update)
    init = actions.add_parser(
        "init", help="draft a dataset.json for tables of your own, and say what was guessed"
    )
    init.add_argument(
        "tables",
        type=existing_path,
        nargs="+",
        metavar="TABLE",
        help="of events, of items and perhaps of users: CSV or Parquet files in one folder",
    )
    init.add_argument("--name", help="of the data set (default: what the folder is called)")
    init.add_argument(
        "--at-least",
        type=float,
        metavar="VALUE",
        help="from which value an event is a positive (default: what divides them most evenly)",
    )
    init.set_defaults(run=subcommands.run_data_init)
    show = actions.add_parser(
        "show", help="rows of prepared data as a model reads them, and what is odd about them"
    )
    show.add_argument("name", help="of a prepared data set, such as corner-shop.leave_one_out")
    show.add_argument("--view", help="such as groups (default: all that are prepared)")
    show.add_argument("--part", default="train", help="of the split (default train)")
    show.add_argument("--rows", type=int, default=2, help="of each view (default 2)")
    show.set_defaults(run=subcommands.run_data_show)
    sample = actions.add_parser("sample", help="a smaller data set folder, of some of the users")
    sample.add_argument(
        "folder", type=path_or_address, help="a data set folder, or the name of a fetched data set"
    )
    takes_gin(sample)
    sample.set_defaults(run=subcommands.run_data_sample)

    vocab = commands.add_parser("vocab", help="train a vocabulary")
    actions = vocab.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="SentencePiece on the prepared text")
    takes_gin(train)
    train.set_defaults(run=subcommands.run_vocab_train)
