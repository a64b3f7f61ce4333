"""The views of a prepared data set: which columns each has, and where its files lie.

Light: nothing here needs tensorflow, so serving and tests may ask where things are.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec_jax.data.schema import closest_match
from m6rec_jax.data.splits import PARTS
from m6rec_jax.errors import DataError
from m6rec_jax.progress import progress_bar
from m6rec_jax.text.writing_templates import WRITING

__all__ = [
    "COLUMNS",
    "DESCRIPTIONS",
    "DIALOGUE_VIEWS",
    "FURTHER_VIEWS",
    "PARTS",
    "TEXT_VIEWS",
    "TFDS_NAME",
    "VERSION",
    "VIEWS",
    "WRITING",
]

TFDS_NAME = "recommender_text"
VERSION = "1.0.0"

# Rows of texts to write, the same for all of them.
_WRITTEN: Mapping[str, tuple[str, bool]] = {
    "text_id": ("str", False),
    "text_index": ("int", False),
    "user_id": ("str", False),
    "item_indices": ("int", True),
    "seen_indices": ("int", True),
    "source": ("str", True),
    "prefix": ("str", False),
    "target": ("str", False),
    "features": ("str", True),
}

# Of dialogues: what is said next, and what is recommended next.
DIALOGUE_VIEWS = ("replies", "recommendations")
# Rows of the items of one turn read the same and want different items; they have one number.
_RECOMMENDED = {**_WRITTEN, "turn_index": ("int", False)}

# View -> column -> (kind, whether it is a list); kinds: str, int (int64), time (float64, unix
# seconds), value (float32).
COLUMNS: Mapping[str, Mapping[str, tuple[str, bool]]] = {
    "groups": {
        "group_id": ("int", False),
        "user_id": ("str", False),
        "user_index": ("int", False),
        "time": ("time", False),
        "history": ("str", True),
        "candidates": ("str", True),
        "item_indices": ("int", True),
        "labels": ("int", True),
        "ratings": ("value", True),
    },
    "next_items": {
        "user_id": ("str", False),
        "user_index": ("int", False),
        "time": ("time", False),
        "history": ("str", True),
        "items": ("str", True),
        "item_indices": ("int", True),
    },
    "reranking": {
        "user_id": ("str", False),
        "user_index": ("int", False),
        "time": ("time", False),
        "history": ("str", True),
        "recent_indices": ("int", True),
        "candidates": ("str", True),
        "item_indices": ("int", True),
        "labels": ("int", True),
    },
    "documents": {
        "kind": ("str", False),
        "source": ("str", True),
        "target": ("str", False),
    },
    "catalogue": {
        "item_id": ("str", False),
        "item_index": ("int", False),
        "text": ("str", False),
    },
    "labelled_texts": {
        "text_id": ("str", False),
        "text_index": ("int", False),
        "group": ("str", False),
        "source": ("str", True),
        "question": ("str", False),
        "label": ("int", False),
    },
    **dict.fromkeys((*WRITING, "replies"), _WRITTEN),
    "recommendations": _RECOMMENDED,
}
# Of users, items and events, unless others are asked for; of a corpus of texts.
VIEWS = ("groups", "next_items", "documents", "catalogue")
# Of them, too, but only where they are asked for.
FURTHER_VIEWS = ("reranking",)
TEXT_VIEWS = ("documents", "labelled_texts")

DESCRIPTIONS: Mapping[str, str] = {
    "groups": "Scoring: a user's history and the candidates shown to them next, with outcomes "
    "(labels 0 or 1; ratings NaN where an event has no value or is a sampled negative).",
    "next_items": "Retrieval: a user's history and the items that follow in the user's order.",
    "reranking": "Reranking: a user's history, the item that came next (label 1, first) "
    "and items that stand near its last ones in what others did (label 0), each with its rank by "
    "nearness in words; recent_indices are the history's items that nearness is counted from, "
    "oldest first.",
    "documents": "Pretraining: kind 'behaviour' (source: history, target: the next behaviours with "
    "their outcomes in words), kind 'item' (no source, target: the item described) and, of a "
    "corpus, kind 'text' (source: what the text is about and what stands before, target: what "
    "follows).",
    "catalogue": "All items in the order of the items table, in one split called 'train'.",
    "labelled_texts": "Classification: a text, a question about it, and the class it has.",
    "explanations": "Generation: why a user may like an item (source: history and item), and the "
    "features that the explanation names.",
    "contents": "Generation: category and title of what a user likes next, two blanks to fill in.",
    "titles": "Generation: the title of what a user likes next, given its category.",
    "queries": "Generation: what a user searches for.",
    "replies": "Generation: what SYSTEM says next in a dialogue (source: the turns before).",
    "recommendations": "What SYSTEM recommends next in a dialogue: one item, its title as target; "
    "seen_indices are the items named before, turn_index is one number for the items of a turn.",
}

# TFDS's names of configs may hold word characters, hyphens and dots.
_REFUSED = r"[^\w\-.]"
_ARROW = {"str": pa.string(), "int": pa.int64(), "time": pa.float64(), "value": pa.float32()}


def check_view(view: str, known: Sequence[str] = tuple(COLUMNS)) -> str:
    """Returns `view`; raises DataError, naming the closest one, where it is none of `known`."""
    if view not in known:
        raise DataError(
            f"there is no view {view!r}{closest_match(view, known)} (known: {', '.join(known)})"
        )
    return view


def arrow_schema(view: str) -> pa.Schema:
    """Schema of a view's rendered Parquet files."""
    return pa.schema(
        [
            (column, pa.list_(_ARROW[kind]) if is_list else _ARROW[kind])
            for column, (kind, is_list) in COLUMNS[check_view(view)].items()
        ]
    )


def rendered_files(folder: Path, part: str) -> list[Path]:
    """The rendered files of a part, in order."""
    return sorted(folder.glob(f"{part}-*.parquet"))


def config_name(dataset: str, split: str, view: str) -> str:
    """TFDS config name of a view."""
    return f"{config_prefix(dataset, split)}.{check_view(view)}"


def config_prefix(dataset: str, split: str) -> str:
    """What the config names of a split's views have in common.

    Characters of the data set's name that TFDS refuses become underscores.
    """
    return f"{re.sub(_REFUSED, '_', dataset)}.{split}"


def tfds_folder(data_dir: str | Path, dataset: str, split: str, view: str) -> Path:
    """Folder that holds a view's shards and `dataset_info.json`."""
    return Path(data_dir) / TFDS_NAME / config_name(dataset, split, view) / VERSION


def build_view(out: Path, rendered: Path, target: Path, progress: bool) -> None:
    """Turns the rendered Parquet files of a view into TFRecord shards.

    Args:
      out: the TFDS data_dir.
      rendered: folder of `<part>-<number>.parquet` files.
      target: the view's folder, of `views.tfds_folder`; what is there is replaced.
      progress: whether to show a bar.
    """
    # Imported here: tensorflow_datasets takes seconds to import.
    import tensorflow_datasets as tfds

    from m6rec_jax.data.recommender_text import recommender_text_dataset_builder as module

    shutil.rmtree(target, ignore_errors=True)
    for left_over in target.parent.glob(f"{target.name}.incomplete*"):
        shutil.rmtree(left_over, ignore_errors=True)
    config = module.RecommenderTextConfig(name=target.parent.name, rendered=str(rendered))
    view = config.view
    with progress_bar(desc=f"writing {view}", total=1, disable=not progress) as bar:
        with _quiet(tfds):
            builder = module.Builder(config=config, data_dir=str(out))
            builder.download_and_prepare(
                download_dir=str(rendered / "downloads"),  # stays empty
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        bar.update()


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS from printing: it announces downloads that do not happen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)
