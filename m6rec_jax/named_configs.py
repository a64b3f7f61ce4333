"""Gin files that have a name: models, methods of tuning, recipes, data sets and shardings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from m6rec_jax.configuration import read_config, shipped_root
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean

# Option -> the question that it answers. In this order, files set what those before leave open.
QUESTIONS = {
    "model": "which size",
    "tuning": "how it is tuned (not for pretraining)",
    "recipe": "what is trained",
    "data": "on which data",
    "sharding": "on which machine",
}
_FOLDERS = {"model": "models", "recipe": "recipes"}
_PARTS = ("architecture", "train", "finetune", "data_set")
# Recipes of any prepared data set.
_ANY = "any"


def files_of(names: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    """Gin files and bindings.

    Args:
      names: option of `QUESTIONS` -> name of a file, for data of a data set; None: not given.

    Raises:
      ConfigError: no file has such a name, or an option is missing.
    """
    recipe, data = names["recipe"], names["data"]
    if data and not recipe:
        raise ConfigError(f"--data {data} needs --recipe NAME (`m6rec configs` lists them)")
    folders, bindings = dict(_FOLDERS), []
    if data:
        has_recipes = data in _data_sets()
        folders["recipe"] = f"data/{data if has_recipes else _ANY}"
        bindings = [] if has_recipes else [f"DATASET = {data!r}"]
    files = []
    for option, name in names.items():
        if name and option != "data":
            folder = folders.get(option, option)
            if name not in (there := _names(folder)):
                near = did_you_mean(name, there)
                raise ConfigError(f"--{option} {name}: not in gin_configs/{folder}{near} ({there})")
            files.append(f"gin_configs/{folder}/{name}.gin")
    return files, bindings


def check_recipe(files: list[str]) -> None:
    """Raises ConfigError where files of a recipe leave the model, or how it is tuned, open."""
    settings = read_config(files)
    for macro, option in (("MODEL", "model"), ("INITIAL_OPTIONS", "tuning")):
        if macro in settings.uses and macro not in settings.macros:
            there = ", ".join(_names(_FOLDERS.get(option, option)))
            raise ConfigError(f"the recipe needs --{option} NAME: {there}")


def listing() -> Iterator[str]:
    """Lines that say which names there are, and what for."""
    for option, question in QUESTIONS.items():
        yield f"\n--{option}: {question}"
        if option == "data":
            for data in _data_sets():
                name = "any other" if data == _ANY else data
                yield f"  {name:22} --recipe {', '.join(_names(f'data/{data}'))}"
        else:
            yield from _described(_FOLDERS.get(option, option))
    yield "\n--gin_file gin_configs/extras/NAME.gin: what a run may do besides"
    yield from _described("extras")
    yield "\nAll of them are in gin_configs; --gin_file and --gin.NAME=VALUE change what they say."


def _described(folder: str) -> Iterator[str]:
    """Names, each with the first sentence of the file's head."""
    for name in _names(folder):
        text = (shipped_root() / "gin_configs" / folder / f"{name}.gin").read_text("utf-8")
        head = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
        sentence = " ".join(line.removeprefix("# ") for line in head).partition(". ")[0]
        yield f"  {name:22} {sentence.removeprefix(f'{name}: ').rstrip('.')}"


def _names(folder: str) -> list[str]:
    stems = sorted(path.stem for path in (shipped_root() / "gin_configs" / folder).glob("*.gin"))
    return [name for name in stems if name not in _PARTS and not name.startswith("prepare")]


def _data_sets() -> list[str]:
    return sorted(path.name for path in (shipped_root() / "gin_configs/data").iterdir())
