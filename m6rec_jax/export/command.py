"""`m6rec export`: writes a model in a format, checks it, and only then gives it its name."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

from m6rec_jax import configuration
from m6rec_jax.bank.loading import load_with_bank
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import read_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.export import held_out, stablehlo
from m6rec_jax.export.folder import PYTHON, verify
from m6rec_jax.export.formats import MODULES, what_is_missing
from m6rec_jax.export.held_out import Answered, Asked
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.titles import open_titles
from m6rec_jax.io.atomic import check_new, new_folder
from m6rec_jax.model import M6Rec
from m6rec_jax.pipeline.locations import data_dir

logger = logging.getLogger(__name__)

# Which have no bfloat16, and of them those whose weights may have fewer bits.
_ON_DEVICES = ("litert", "web")
_WITH_PRECISIONS = ("litert", "web")
# Formats that take them.
_OPTIONS = {"platforms": ("stablehlo", "saved_model"), "beams": ("stablehlo",), "runtime": ("web",)}
NUM_BEAMS = 4


def export(
    run: Path,
    output: Path,
    format_: str = "stablehlo",
    *,
    bank: Path | None = None,
    index: Path | None = None,
    platforms: Sequence[str] | None = None,
    split: str = "test",
    rows: int = 500,
    num_beams: int | None = None,
    precision: str | None = None,
    runtime: Path | None = None,
    gin_files: Sequence[str | Path] = (),
    bindings: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Exports the newest checkpoint of a run, or a bank's tasks on its backbone.

    Args:
      run: MODEL_DIR of a training run, on this machine.
      output: a new folder.
      format_: one of `formats.FORMATS`.
      bank: of prompts; None: the run's own tasks.
      index: of `m6rec index build`: all formats but StableHLO recommend its items.
      platforms: of StableHLO and SavedModel; None: `stablehlo.PLATFORMS`.
      split, rows: see `held_out.ask`.
      num_beams: of StableHLO's beam search; None: `NUM_BEAMS`; 0: no beam search.
      precision: of LiteRT's programs, see `litert.write`; None: 'int8'. Of StableHLO and
        SavedModel 'float32' makes products of float32; None: those of the run.
      runtime: of LiteRT.js, for a page; see `web_page.find_runtime`.
      gin_files, bindings: settings, such as `data_dir.path`.

    Returns:
      By program, how it compares with the model; see `Exported.check`.

    Raises:
      CheckpointError: no run, bank or index, or something is in `output`.
      ConfigError: none of its tasks can be exported, the format has no place for a catalogue, is
        not of such a precision or takes no such option, or something that it needs is missing.
      DataError: the tasks' data are not on this machine, or the export is not equal to the model,
        and is not written.
    """
    if missing := what_is_missing(format_):
        raise ConfigError(f"--format {format_} {missing}")
    if precision not in (None, "float32") and format_ not in _WITH_PRECISIONS:
        raise ConfigError(
            f"--precision {precision} is for {' and '.join(_WITH_PRECISIONS)}; "
            f"--format {format_} takes float32 alone"
        )
    for name, given in (("platforms", platforms), ("beams", num_beams), ("runtime", runtime)):
        if given is not None and format_ not in _OPTIONS[name]:
            raise ConfigError(f"--{name} is for --format {' and '.join(_OPTIONS[name])}")
    if rows < 1:
        raise ConfigError(f"--rows {rows}: an export is checked with one row at least")
    if format_ == "web":
        if index is None:
            raise ConfigError("--format web needs --index: the page shows its items")
        # tensorflow takes seconds to import.
        from m6rec_jax.export import web_page

        runtime = web_page.find_runtime(runtime)
    if format_ == "stablehlo" and index is not None:
        raise ConfigError("--index is for the other formats: stablehlo holds no catalogue")
    check_new(output)
    # Attention of all platforms, and not of the one that exports.
    plain = "dot_product_attention.implementation = 'plain'"
    trained_by = run / CONFIG_FILE
    if trained_by.is_file() and any(t.reads_text for t in read_settings(run).tasks.values()):
        gin_files = [trained_by, *gin_files]  # imports the module that registers the task
    configuration.parse_config(gin_files, [*bindings, plain])
    model = load_with_bank(run, bank=bank)
    model = dataclasses.replace(model, data_dir=model.data_dir or data_dir())
    tasks = {name: s for name, s in model.settings.tasks.items() if s.kind in held_out.KINDS}
    if not tasks:
        kinds = ", ".join(sorted({own.kind for own in model.settings.tasks.values()})) or "none"
        raise ConfigError(
            f"{run} has tasks of kind {kinds}; {', '.join(held_out.KINDS)} can be exported"
        )
    catalogue = None if index is None else held_out.open_catalogue(model, index)
    own = model  # in the export's precision
    if precision == "float32" or format_ in _ON_DEVICES:
        config = model.model.config.replace(dtype="float32", matmul_dtype=None)
        own = dataclasses.replace(own, model=M6Rec(config))
    if format_ in _ON_DEVICES:
        # Their programs run all layers.
        tasks = {name: dataclasses.replace(task, exits=None) for name, task in tasks.items()}
        settings = dataclasses.replace(model.settings, tasks=tasks)
        own = dataclasses.replace(own, settings=settings)
    if num_beams is None:
        num_beams = NUM_BEAMS if format_ == "stablehlo" else 0
    titles = open_titles(model) if format_ == "stablehlo" else None
    recorder, answered = Recorder(), list[Answered]()
    for name in tasks:
        answered += held_out.ask(
            own, name, recorder, split=split, rows=rows, num_beams=num_beams, titles=titles
        )
    asked = Asked(
        model,
        recorder,
        answered,
        platforms or stablehlo.PLATFORMS,
        catalogue,
        precision,
        runtime,
        titles,
    )
    return write_export(output, format_, asked)


def write_export(output: Path, format_: str, asked: Asked) -> dict[str, dict[str, float]]:
    """Writes an export, checks it, and then names the folder `output`.

    Arguments, returns and raises as `export`.
    """
    module = importlib.import_module(f"m6rec_jax.export.{MODULES[format_]}")
    with new_folder(output) as unfinished:
        module.write(unfinished, asked)
        logger.info("checking the export in a process of its own, without m6rec_jax")
        return verify(unfinished, module.CHECK, getattr(module, "INTERPRETER", PYTHON))
