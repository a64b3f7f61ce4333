"""`m6rec export --format web`: a folder that recommends in a browser, without a server and offline.

The programs are LiteRT's (`m6rec_jax.export.litert`), run by LiteRT.js. What the page needs of a
data set is in `catalogue.json`: texts of each item, rendered but for what is said of the user.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m6rec_jax import pages
from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.export import litert
from m6rec_jax.export.device_client import HELD_OUT, VOCABULARY
from m6rec_jax.export.device_programs import bytes_of_rows, recommended_packed, write_programs
from m6rec_jax.export.folder import write_manifest
from m6rec_jax.export.held_out import Asked, Catalogue
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.text import verbalize
from m6rec_jax.text.format_strings import Template
from m6rec_jax.text.records import Item, Value
from m6rec_jax.text.templates import DatasetTemplate

FORMAT, CHECK, INTERPRETER = "m6rec-web-1", "check.mjs", ["node"]
LITERT_JS_VERSION = "2.5.3"
PACKAGES = ("@litertjs/core", "@litertjs/wasm-utils")
# For browsers with relaxed SIMD, with threads besides, and for others. Each loads one.
_BUILDS = ("litert_wasm_internal", "litert_wasm_threaded_internal", "litert_wasm_compat_internal")
# A hundred, of which the page ranks so many, take four runs.
_CANDIDATES = 25
# What the page counts of a user.
_OF_USER = ("user_count", "user_positive_percent", "user_mean_value")


def runtime_folder() -> Path:
    """Where npm puts LiteRT.js."""
    return default_cache_dir() / f"litertjs-{LITERT_JS_VERSION}" / "node_modules"


def find_runtime(folder: Path | None) -> Path:
    """The folder of LiteRT.js's packages, `node_modules`, of the version that the page is made for.

    Args:
      folder: that has them; None: the data folder's, which npm fills.

    Raises:
      ConfigError: they are not there, or of another version; says what to run.
    """
    own = runtime_folder()
    packages = [f"{name}@{LITERT_JS_VERSION}" for name in PACKAGES]
    command = ["npm", "install", "--ignore-scripts", "--prefix", str(own.parent), *packages]
    found = folder or own
    if folder is None and not found.is_dir() and shutil.which("npm"):
        own.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, capture_output=True, check=False)
    for name in PACKAGES:
        path = found / name / "package.json"
        version = json.loads(path.read_text("utf-8"))["version"] if path.is_file() else "missing"
        if version != LITERT_JS_VERSION:
            raise ConfigError(
                f"--format web needs {name} {LITERT_JS_VERSION}, and {path} is {version}: run\n"
                f"  {' '.join(command)}\nand name {own} with --runtime"
            )
    return found


def write(folder: Path, asked: Asked) -> None:
    """Writes page, programs, catalogue, LiteRT.js and the check; the precision as `litert.write`.

    Raises:
      DataError: the data of a task are not on this machine, or lack an item of the index, or an
        item lacks what its texts need.
    """
    model, catalogue, precision = asked.model, asked.catalogue, asked.precision or "int8"
    assert catalogue is not None
    assert asked.runtime is not None
    shown = page_catalogue(model, catalogue)
    texts = [
        Template.parse(text).render(_usual_user(task["statistics"]))
        for task in shown["tasks"].values()
        if task["kind"] == "scoring"
        for text in shown["columns"][task["candidates"]]
    ]
    fields = write_programs(
        folder,
        model,
        [*asked.answered, *recommended_packed(catalogue, asked.answered)],
        precision,
        litert.convert,
        _CANDIDATES,
        usual=texts,
        without=["item"],
    )
    (folder / "catalogue.json").write_text(json.dumps(shown, ensure_ascii=False), "utf-8")
    vectors, scales = bytes_of_rows(catalogue.vectors)
    (folder / "vectors.bin").write_bytes(scales.astype("<f4").tobytes() + vectors.tobytes())
    shared = (pages.FOLDER / name for name in pages.FILES)
    for path in (*(Path(__file__).parent / "web").iterdir(), *shared):
        shutil.copy(path, folder)
    _copy_runtime(asked.runtime, folder / "runtime")
    builds = (f"runtime/{build}.wasm" for build in _BUILDS)
    for name in (VOCABULARY, "catalogue.json", *builds):
        _pack(folder / name)
    _write_service_worker(folder)
    write_manifest(
        folder,
        FORMAT,
        model,
        ["browser"],
        precision,
        **fields,
        runtime={
            "name": "LiteRT.js",
            "packages": dict.fromkeys(PACKAGES, LITERT_JS_VERSION),
            "license": "Apache-2.0",
        },
        first_load_bytes=_first_load(folder),
    )


def page_catalogue(model: LoadedModel, catalogue: Catalogue) -> dict[str, Any]:
    """What the page shows and reads of items: `catalogue.json`.

    Tasks of other data sets than the catalogue's are left out. A column of texts that several tasks
    have stands there once.
    """
    columns: list[list[str]] = []

    def column(texts: list[str]) -> int:
        if texts not in columns:
            columns.append(texts)
        return columns.index(texts)

    known = model.dataset_spec(catalogue.task)
    tasks = {}
    for name, own in model.settings.tasks.items():
        spec = model.dataset_spec(name)
        if known is None or spec is None or spec["name"] != known["name"]:
            continue
        data = open_serving_data(model, name)
        if missing := [id_ for id_ in catalogue.ids if id_ not in data.items]:
            raise DataError(
                f"the data of {name!r}, {own.prepared}, lack the item {missing[0]!r} of the index: "
                "prepare or update them, too"
            )
        template, items = data.template, [data.items[id_] for id_ in catalogue.ids]
        just_now: list[Mapping[str, Value]] = [{"ago": verbalize.ago(0)}] * len(items)
        if own.kind == "generation" and own.writing not in template.writing:
            continue
        task: dict[str, Any] = {
            "kind": own.kind,
            "profile": template.profile_template.source,
            "event": template.event_template.source,
            "context": template.context_template.source,
            "max_events": own.max_events,
            "statistics": _constants(data),
            "events": column(_filled(template.event_template, items, just_now, "outcome")),
        }
        if own.kind == "scoring":
            found: list[dict[str, Value]] = [{}] * len(items)
            if data.statistics is not None:
                found = data.statistics.user("").features_of(items)
            task["candidates"] = column(
                _filled(template.candidate_template, items, found, *_OF_USER)
            )
        elif own.kind == "generation":
            writing = template.writing[own.writing]
            task["writing"] = own.writing
            task["about"] = column([writing.about.render(item.attributes) for item in items])
            task["prefix"] = column([writing.render_prefix(item) for item in items])
        tasks[name] = task
    data = open_serving_data(model, catalogue.task, with_statistics=False)
    profile = data.template.profile_template
    event = data.template.event_template
    return {
        "name": data.spec.name,
        "task": catalogue.task,
        "titles": list(catalogue.titles),
        "repeats": data.spec.repeats_count,
        "reactions": _reactions(data.template),
        "profile": [
            {"name": name, "required": name in profile.required}
            for name in profile.fields
            if name in data.spec.users.columns
        ],
        "own_titles": set(event.required) <= {"title", "outcome", "ago"},
        "columns": columns,
        "tasks": tasks,
    }


def _filled(
    template: Template, items: Sequence[Item], features: Sequence[Mapping[str, Value]], *later: str
) -> list[str]:
    return [
        template.fill({**item.attributes, **found}, later)
        for item, found in zip(items, features, strict=True)
    ]


def _constants(data: ServingData) -> dict[str, float | None] | None:
    """What the page counts users with; None where requests bring their own statistics."""
    own = data.statistics
    if own is None:
        return None
    return {
        "smoothing": own.settings.options.smoothing,
        "share": None if own.settings.at_least is None else own.share,
        "mean": own.mean if own.settings.has_values else None,
        "spread": own.spread,
        "at_least": own.settings.at_least,
    }


def _usual_user(constants: Mapping[str, Any] | None) -> dict[str, str]:
    """What is said of most users: texts are then as long as they mostly are."""
    if constants is None:
        return {}
    found = {"user_count": "10"}
    if constants["share"] is not None:
        found["user_positive_percent"] = verbalize.percent(constants["share"])
    if constants["mean"] is not None:
        found["user_mean_value"] = verbalize.rounded(constants["mean"], constants["spread"])
    return found


def _reactions(template: DatasetTemplate) -> list[dict[str, Any]]:
    """What one can say of an item, the highest first, and a value that has these words."""
    found, lowest = [], None
    for outcome in template.outcomes:
        value = outcome.at_least
        if value is None and lowest is not None:
            value = lowest - 1
        found.append({"text": outcome.text, "value": value})
        lowest = value
    return found or [{"text": "", "value": None}]


def _copy_runtime(packages: Path, folder: Path) -> None:
    folder.mkdir()
    core, utils = (packages / name for name in PACKAGES)
    # Browsers find packages by address alone.
    source = (core / "dist" / "index.js").read_text("utf-8")
    source = source.replace(f'"{PACKAGES[1]}"', '"./wasm_utils.js"')
    (folder / "index.js").write_text(source, "utf-8")
    shutil.copy(utils / "dist" / "index.js", folder / "wasm_utils.js")
    for build in _BUILDS:
        for ending in ("js", "wasm"):
            shutil.copyfile(core / "wasm" / f"{build}.{ending}", folder / f"{build}.{ending}")
    (folder / "LICENSE.txt").write_text(
        f"LiteRT.js {LITERT_JS_VERSION} ({', '.join(PACKAGES)}) by the authors of LiteRT, Google.\n"
        "Apache License, Version 2.0: ../LICENSE.txt has it.\n"
        "Unchanged, but that index.js names a file of the second one, and WebAssembly is packed.\n",
        "utf-8",
    )


def _pack(path: Path) -> None:
    """Replaces a file by NAME.gzip: most hosts send WebAssembly as it is, some unpack a .gz."""
    path.with_name(f"{path.name}.gzip").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
    path.unlink()


def _write_service_worker(folder: Path) -> None:
    """Puts the files, and a version that changes with each of them, into `sw.js`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digest = hashlib.sha256("".join(map(file_sha256, paths)).encode()).hexdigest()
    kept = _page_files(folder)
    constants = f'const VERSION = "{digest[:16]}", FILES = {json.dumps(["./", *kept])};\n'
    path = folder / "sw.js"
    path.write_text(constants + path.read_text("utf-8"), "utf-8")


def _page_files(folder: Path) -> list[str]:
    """What every browser loads; the manifest is still to be written."""
    without = {"sw.js", "LICENSE.txt", CHECK, HELD_OUT}
    found = [path.name for path in folder.iterdir() if path.is_file() and path.name not in without]
    return sorted([*found, "export.json", "runtime/index.js", "runtime/wasm_utils.js"])


def _first_load(folder: Path) -> int:
    """Bytes of all that a browser loads, each file compressed by gzip."""
    build = f"runtime/{_BUILDS[1]}"
    names = [*_page_files(folder), "sw.js", f"{build}.js", f"{build}.wasm.gzip"]
    paths = (folder / name for name in names)
    return sum(len(gzip.compress(path.read_bytes(), 9)) for path in paths if path.is_file())
