"""`m6rec compress`."""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m6rec_jax.commands.arguments import add_command, local_path, takes_gin, takes_run
from m6rec_jax.commands.settings import look_at_own
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.atomic import check_output


def add_commands(commands: Any) -> None:
    compress = commands.add_parser("compress", help="make a smaller model of a trained one")
    actions = compress.add_subparsers(dest="action", required=True, metavar="ACTION")
    structure = add_command(actions, "structure", run_compress_structure)
    takes_run(structure)
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
    pack = add_command(actions, "pack", run_compress_pack)
    takes_run(pack)
    pack.add_argument(
        "--output", type=local_path, required=True, metavar="FILE", help="such as model.m6rec"
    )
    pack.add_argument(
        "--bits",
        type=int,
        choices=range(2, 9),
        default=8,
        metavar="N",
        help="of each weight, 2 to 8 (default 8); fewer than 8 want a run that was trained with "
        "Step.weight_bits=N",
    )
    pack.add_argument(
        "--catalogue",
        action="store_true",
        help="with the items and statistics that requests need, and no user: see that their terms "
        "let you pass them on",
    )
    pack.add_argument("--limits", metavar="TEXT", help="what the model cannot do, for its manifest")
    vocabulary = add_command(actions, "vocabulary", run_compress_vocabulary)
    takes_run(vocabulary)
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


def run_compress_structure(args: argparse.Namespace) -> None:
    """a run folder with fewer heads, feed-forward columns and layers: those that the loss depends
    on most"""
    if args.batches:
        look_at_own(args)
    elif args.gin_file or args.gin_bindings:
        raise ConfigError("--batches 0 reads no data, so gin files and --gin settings do nothing")
    from m6rec_jax.compression.structure import Sizes, compress_structure

    sizes = Sizes(args.heads, args.mlp_dim, args.encoder_layers, args.decoder_layers)
    config = compress_structure(
        args.folder,
        args.output,
        sizes,
        batches=args.batches,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
    )
    for name in dataclasses.asdict(sizes):
        print(f"ModelConfig.{name} = {getattr(config, name)}")
    print(args.output)


def run_compress_pack(args: argparse.Namespace) -> None:
    """one small file of a run: sparse weights of 8 bits or fewer, vocabulary, settings"""
    from m6rec_jax.engine.model_folder import packed_of
    from m6rec_jax.engine.programs.packed_archive import write_archive

    check_output(args.output)
    packed = packed_of(args.folder, args.bits)
    if args.limits:
        packed.manifest["about"]["limits"] = args.limits
    if args.catalogue:
        packed.files.update(_carried_data(args.folder, packed.files))
    write_archive(args.output, packed)
    leaves = packed.leaves.values()
    left = sum(int((leaf != 0).sum()) for leaf in leaves)
    print(
        f"{args.output}: {args.output.stat().st_size:,} bytes, {left:,} numbers that are not zero "
        f"of {sum(leaf.size for leaf in leaves):,}"
    )


def _carried_data(run: Path, files: Iterable[str]) -> dict[str, bytes]:
    """What requests to a packed model's tasks are rendered with, as files beside its own."""
    from m6rec_jax.config_file import CONFIG_FILE
    from m6rec_jax.configuration import check_config
    from m6rec_jax.data.getting.sources import default_data_dir
    from m6rec_jax.engine.model_folder import DATA_FOLDER, DATASETS_FOLDER, RANKING_FILE
    from m6rec_jax.io.buckets import kept_copy, path_of
    from m6rec_jax.requests.serving_data import files_without_users

    config, data_dir = run / CONFIG_FILE, None
    if config.is_file():  # quickstart's name a folder of their own
        data_dir = check_config([config]).parameter("data_dir.path", None)
    base = path_of(data_dir).expanduser() if data_dir else default_data_dir()
    paths = [Path(file) for file in files]
    with_counts = any(path.name == RANKING_FILE for path in paths)
    folders = [kept_copy(base / path.stem) for path in paths if DATASETS_FOLDER in path.parts]
    return {
        f"{DATA_FOLDER}/{folder.name}/{file}": data
        for folder in folders
        for file, data in files_without_users(folder, with_counts).items()
    }


def run_compress_vocabulary(args: argparse.Namespace) -> None:
    """a run folder with fewer pieces: those that its training data have least of go, the others
    keep their embeddings"""
    look_at_own(args)
    from m6rec_jax.compression.vocabulary import compress_vocabulary

    made = compress_vocabulary(
        args.folder,
        args.output,
        args.size,
        rows=args.rows,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
    )
    print(f"{made.num_pieces} pieces, ModelConfig.vocab_size = {made.size}")
    print(args.output)
