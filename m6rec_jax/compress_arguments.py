"""Arguments of `m6rec compress`."""

from typing import Any

from m6rec_jax import subcommands
from m6rec_jax.arguments import existing_path, local_path, takes_gin


def add_compress(commands: Any) -> None:
    """Adds `compress` to the sub-commands."""
    compress = commands.add_parser("compress", help="make a smaller model of a trained one")
    actions = compress.add_subparsers(dest="action", required=True, metavar="ACTION")
    structure = actions.add_parser(
        "structure",
        help="a run folder with fewer heads, feed-forward columns and layers: those that the loss "
        "depends on most",
    )
    structure.add_argument(
        "run_folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run"
    )
    structure.add_argument("--output", type=local_path, required=True, metavar="DIR")
    for name, text in (
        ("--heads", "of every attention"),
        ("--mlp-dim", "columns of every feed-forward layer"),
        ("--encoder-layers", "of the encoder"),
        ("--decoder-layers", "of the decoder"),
    ):
        structure.add_argument(name, type=int, metavar="N", help=f"{text} that stay (default: all)")
    structure.add_argument(
        "--batches",
        type=int,
        default=32,
        metavar="N",
        help="of eight training rows that importance is measured on (default 32); 0: norms of "
        "weights, without data",
    )
    takes_gin(structure)
    structure.set_defaults(run=subcommands.run_compress_structure)
    pack = actions.add_parser(
        "pack", help="one small file of a run: sparse weights of 8 bits, vocabulary, settings"
    )
    pack.add_argument("run_folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run")
    pack.add_argument(
        "--output", type=local_path, required=True, metavar="FILE", help="such as model.m6rec"
    )
    pack.add_argument(
        "--catalogue",
        action="store_true",
        help="with the items and statistics that requests need, and no user: see that their terms "
        "let you pass them on",
    )
    pack.add_argument("--limits", metavar="TEXT", help="what the model cannot do, for its manifest")
    pack.set_defaults(run=subcommands.run_compress_pack)
    vocabulary = actions.add_parser(
        "vocabulary",
        help="a run folder with fewer pieces: those that its training data have least of go, the "
        "others keep their embeddings",
    )
    vocabulary.add_argument(
        "run_folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run"
    )
    vocabulary.add_argument("--output", type=local_path, required=True, metavar="DIR")
    vocabulary.add_argument(
        "--size",
        type=int,
        required=True,
        metavar="N",
        help="rows of the embedding, a multiple of 128 (bytes and control tokens take 365)",
    )
    vocabulary.add_argument(
        "--rows",
        type=int,
        default=20_000,
        metavar="N",
        help="of training data that pieces are counted in (default 20000)",
    )
    takes_gin(vocabulary)
    vocabulary.set_defaults(run=subcommands.run_compress_vocabulary)
