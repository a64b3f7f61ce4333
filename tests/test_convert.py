"""`m6rec convert`: whole conversions, what they print, and what the results are good for."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax import cli, configuration
from m6rec_jax.checkpoints.checkpoint import PARAMS, open_checkpoint
from m6rec_jax.checkpoints.huggingface import read_huggingface, to_model_config, write_huggingface
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.t5_weights import Weights, leaf_shapes
from m6rec_jax.checkpoints.t5x import read_t5x, write_t5x
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.convert import convert, gin_lines
from m6rec_jax.engine.model_folder import load_model, variable_targets
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import Vocabulary
from tests.checkpoints.t5_weights import T5_1_1, UMT5, assert_same_leaves, random_weights

EMBEDDING, HEAD = "token_embedder/embedding", "logits_head/kernel"


def model_of(rows: int) -> Weights:
    return random_weights(T5_1_1.replace(vocab_size=rows))


def read_ours(folder: Path) -> Weights:
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    target = variable_targets(M6Rec(config))["params"]
    params = checkpoint.restore(PARAMS, target, config)
    return Weights(config, {name: np.asarray(leaf) for name, leaf in flatten(params).items()})


def test_from_format_to_format(tmp_path: Path) -> None:
    write_t5x(random_weights(UMT5), tmp_path / "scanned", step=7, scanned=True)
    convert(f"scalable_t5:{tmp_path / 'scanned'}", f"huggingface:{tmp_path / 'theirs'}")
    convert(f"huggingface:{tmp_path / 'theirs'}", f"t5x:{tmp_path / 'layers'}")
    assert_same_leaves(read_t5x(tmp_path / "layers"), random_weights(UMT5))


def model_type_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def test_an_mt5_stays_one(tmp_path: Path) -> None:
    """Remembered through a checkpoint of ours, where only its origin says so."""
    weights = dataclasses.replace(random_weights(T5_1_1), model_type="mt5")
    write_huggingface(weights, tmp_path / "theirs")
    convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    report = convert(str(tmp_path / "ours"), f"huggingface:{tmp_path / 'back'}")
    assert model_type_of(tmp_path / "back") == "mt5"
    assert "Auto classes take it for 'mt5'" in report


def test_a_run_of_unknown_origin_is_called_what_the_user_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training writes manifests of its own, and t5x's checkpoints do not say."""
    write_t5x(random_weights(T5_1_1), tmp_path / "theirs")
    source = f"t5x:{tmp_path / 'theirs'}"
    report = convert(source, f"huggingface:{tmp_path / 'plain'}")
    assert model_type_of(tmp_path / "plain") == "t5"
    assert "Auto classes take it for 't5' (--model-type says otherwise" in report
    target = f"huggingface:{tmp_path / 'named'}"
    arguments = ["convert", "--from", source, "--model-type"]
    assert cli.main([*arguments, "umt5", "--to", target]) == 2
    assert "write it as 't5'" in capsys.readouterr().err
    assert cli.main([*arguments, "mt5", "--to", target]) == 0
    assert model_type_of(tmp_path / "named") == "mt5"
    assert cli.main([*arguments, "mt5", "--to", str(tmp_path / "ours")]) == 2
    assert "--model-type mt5 is for --to huggingface:FOLDER alone" in capsys.readouterr().err


# --- the vocabulary ------------------------------------------------------------------------------


def test_a_model_with_all_rows_keeps_them(shop_vocabulary: Vocabulary, tmp_path: Path) -> None:
    """As T5's 32,128 and mT5's 250,112: sentinels and control tokens are there already."""
    weights = model_of(shop_vocabulary.size)
    write_huggingface(weights, tmp_path / "theirs")
    shutil.copyfile(shop_vocabulary.model_file, tmp_path / "theirs" / "spiece.model")
    report = convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    first = shop_vocabulary.num_pieces + 100
    assert f"control tokens take rows {first} to {first + 4}" in report
    assert "are new" not in report
    loaded = load_model(tmp_path / "ours")
    assert loaded.vocabulary == shop_vocabulary
    assert loaded.model.config == weights.config
    assert_same_leaves(read_ours(tmp_path / "ours"), weights)
    convert(str(tmp_path / "ours"), f"huggingface:{tmp_path / 'back'}")
    for name in ("spiece.model", "model.safetensors"):
        written = (tmp_path / "back" / name).read_bytes()
        assert written == (tmp_path / "theirs" / name).read_bytes()


def test_rows_that_are_missing_start_as_the_mean_of_the_text(
    shop_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    weights = model_of(shop_vocabulary.num_pieces)
    write_huggingface(weights, tmp_path / "theirs")
    report = convert(
        f"huggingface:{tmp_path / 'theirs'}",
        str(tmp_path / "ours"),
        vocabulary_file=Path(shop_vocabulary.model_file),
    )
    old, new = shop_vocabulary.num_pieces, shop_vocabulary.size
    assert f"rows {old} to {new - 1} are new: each is the mean of the {old} rows of text" in report
    assert f"VOCAB_SIZE = {new}" in report
    ours = read_ours(tmp_path / "ours")
    assert ours.config.vocab_size == new
    for table, source in (
        (ours.leaves[EMBEDDING], weights.leaves[EMBEDDING]),
        (ours.leaves[HEAD].T, weights.leaves[HEAD].T),
    ):
        np.testing.assert_array_equal(table[:old], source)
        np.testing.assert_allclose(
            table[old:], np.broadcast_to(source.mean(0), (new - old, 8)), atol=1e-6
        )
    load_model(tmp_path / "ours")


def test_another_models_vocabulary_is_refused(shop_vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_huggingface(model_of(128), tmp_path / "theirs")
    convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    for source, target in (("huggingface:theirs", "new"), ("ours", "huggingface:new")):
        with pytest.raises(CheckpointError, match="it is not this model's vocabulary"):
            convert(
                *(
                    place.replace(":", f":{tmp_path}/") if ":" in place else f"{tmp_path / place}"
                    for place in (source, target)
                ),
                vocabulary_file=Path(shop_vocabulary.model_file),
            )
    assert not (tmp_path / "new").exists()


def test_more_rows_than_the_vocabulary_are_kept_and_named(
    shop_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    write_huggingface(model_of(shop_vocabulary.size + 256), tmp_path / "theirs")
    report = convert(
        f"huggingface:{tmp_path / 'theirs'}",
        str(tmp_path / "ours"),
        vocabulary_file=Path(shop_vocabulary.model_file),
    )
    assert f"256 rows beyond the vocabulary's {shop_vocabulary.size} are kept" in report
    assert read_ours(tmp_path / "ours").config.vocab_size == shop_vocabulary.size + 256


def test_a_given_vocabulary_goes_with_the_weights_or_nothing_is_written(
    shop_vocabulary: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_t5x(model_of(shop_vocabulary.size), tmp_path / "theirs")
    target = f"huggingface:{tmp_path / 'out'}"
    arguments = ["convert", "--from", f"t5x:{tmp_path / 'theirs'}", "--to", target, "--vocabulary"]
    assert cli.main([*arguments, str(tmp_path / "missing.model")]) == 2
    assert "missing.model: nothing is there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # The corrected command.
    assert cli.main([*arguments, shop_vocabulary.model_file]) == 0
    assert (tmp_path / "out" / "spiece.model").read_bytes() == Path(
        shop_vocabulary.model_file
    ).read_bytes()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("run", "t5x:out"),
        ("huggingface:theirs", "scalable_t5:out"),
        ("run", "t5x_bridge:out"),
        ("t5x_bridge:theirs", "run"),
    ],
)
def test_a_vocabulary_that_would_not_be_used_is_refused(
    shop_vocabulary: Vocabulary, source: str, target: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"--vocabulary .* would not be used from .* to .*; leave it out"
    ):
        convert(source, target, vocabulary_file=Path(shop_vocabulary.model_file))


# --- our own checkpoints -------------------------------------------------------------------------


def test_what_has_no_place_in_t5_stays_behind(tmp_path: Path) -> None:
    config = T5_1_1.replace(
        late_layers_start=1, prompts=PromptConfig(num_prompts=2, adapter_rank=1)
    )
    trees = dict(nn.meta.unbox(jax.jit(M6Rec(config).init)(jax.random.key(0), initial_features())))
    with CheckpointStore(tmp_path / "run" / "checkpoints", asynchronous=False) as store:
        store.save(5, trees, data={}, run=RunDescription(config), frozen=("params",))
    report = convert(str(tmp_path / "run"), f"t5x:{tmp_path / 'out'}")
    assert "tensors of prompts stay behind" in report
    assert "late_layers_start: without what these set, outputs differ" in report
    assert (tmp_path / "out" / "checkpoint_5").is_dir()
    exported = read_t5x(tmp_path / "out")
    assert exported.config == T5_1_1
    np.testing.assert_array_equal(exported.leaves[EMBEDDING], flatten(trees["params"])[EMBEDDING])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_huggingface(random_weights(T5_1_1), tmp_path / "theirs")
    convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    with pytest.raises(CheckpointError, match=r"has a checkpoint already \(step 0\)"):
        convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))


@pytest.mark.parametrize("name", ["inference/settings.json", "config.gin"])
def test_a_run_without_a_checkpoint_is_not_overwritten(name: str, tmp_path: Path) -> None:
    write_huggingface(random_weights(T5_1_1), tmp_path / "theirs")
    (tmp_path / "ours" / name).parent.mkdir(parents=True)
    (tmp_path / "ours" / name).write_text("{}")
    with pytest.raises(CheckpointError, match="is a run already, though without a checkpoint"):
        convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    assert not (tmp_path / "ours" / "checkpoints").exists()


def test_a_step_of_a_run_brings_the_runs_vocabulary(
    shop_vocabulary: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = model_of(shop_vocabulary.size)
    write_huggingface(
        weights, tmp_path / "theirs", vocabulary_file=Path(shop_vocabulary.model_file)
    )
    convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    best = {"best": {"name": "auc", "best_step": 10, "best": 0.9}}
    checkpoint = open_checkpoint(str(tmp_path / "ours"))
    manifest = dataclasses.replace(checkpoint.manifest, extra=best)
    checkpoint.manifest_file.write_text(json.dumps(dataclasses.asdict(manifest)))
    for number, folder in enumerate(("ours", "ours/checkpoints", "ours/checkpoints/0")):
        target = tmp_path / f"back{number}"
        caplog.clear()
        report = convert(str(tmp_path / folder), f"huggingface:{target}")
        # Whoever names a step wants that one.
        assert ("by auc step 10 was better" in caplog.text) == (number < 2)
        assert (target / "spiece.model").read_bytes() == Path(
            shop_vocabulary.model_file
        ).read_bytes()
        assert "it has no tokenizer" not in report
    shutil.rmtree(tmp_path / "ours" / "inference")
    report = convert(str(tmp_path / "ours"), f"huggingface:{tmp_path / 'bare'}")
    assert "it has no tokenizer" in report


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_huggingface(random_weights(T5_1_1), tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="scalable_t5 has a relative position bias in every"):
        convert("huggingface:theirs", "scalable_t5:out")
    convert("huggingface:theirs", "ours")
    with pytest.raises(CheckpointError, match="theirs exists already"):
        convert("ours", "huggingface:theirs")
    with pytest.raises(CheckpointError, match=r"'\.' is the current folder"):
        convert("ours", "huggingface:.")
    (tmp_path / "t5x" / "checkpoint_0" / "target").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="checkpoint_0 exists already"):
        convert("ours", "t5x:t5x")


@pytest.mark.parametrize("target", ["huggingface", "t5x"])
def test_a_full_disk_is_named(target: str, tmp_path: Path) -> None:
    """Of the libraries that write, none raises OSError. A limit on file sizes stands in for it."""
    write_huggingface(random_weights(T5_1_1), tmp_path / "theirs")
    convert(f"huggingface:{tmp_path / 'theirs'}", str(tmp_path / "ours"))
    code = (
        "import resource, signal, sys; from m6rec_jax import cli; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        f"sys.exit(cli.main(['convert', '--from', 'ours', '--to', '{target}:out']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(configuration.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("hf:here", "there", "hf:here: unknown format 'hf'; write FORMAT:FOLDER with one of m6rec"),
        (".", "m6rec:there", "both of the format m6rec"),
        ("t5x:gs://bucket/t5", "there", "only m6rec's own checkpoints may lie in a bucket"),
        ("t5x:here", "there", "--from t5x:here: nothing is there"),
        (".", "t5x:there", "no checkpoint at"),
        ("t5x:~/not_there", "there", "--from t5x:~/not_there: nothing is there"),
    ],
)
def test_errors(source: str, target: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "--from", source, "--to", target]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_gin")
def test_the_gin_lines_build_the_model(tmp_path: Path) -> None:
    """What is printed can be pasted into a model file."""
    for config in (T5_1_1, UMT5, ModelConfig(mlp_activations=("relu",), vocab_size=640)):
        file = tmp_path / "model.gin"
        lines = ["include 'gin_configs/models/architecture.gin'", *gin_lines(config)]
        file.write_text("\n".join(lines) + "\n")
        configuration.parse_config([file], ["DROPOUT_RATE = 0.0"])
        assert configuration.macro("MODEL").config == config


@pytest.mark.usefixtures("no_gin")
def test_a_configured_run_does_not_change_foreign_weights(tmp_path: Path) -> None:
    write_huggingface(random_weights(T5_1_1), tmp_path / "theirs")
    write_t5x(random_weights(T5_1_1), tmp_path / "t5x")
    files = ["gin_configs/models/xl.gin", "gin_configs/tuning/option_adapter.gin"]
    configuration.parse_config(files, ["NUM_OPTIONS = 2"])
    assert ModelConfig().dtype == "bfloat16", "gin's settings are defaults elsewhere"
    assert read_huggingface(tmp_path / "theirs").config == T5_1_1
    assert read_t5x(tmp_path / "t5x").config == T5_1_1


# Of the config.json that google/t5-v1_1-* (and flan-t5-*) have: d_model, d_ff, layers, heads.
PUBLISHED = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
}


@pytest.mark.usefixtures("no_gin")
@pytest.mark.parametrize("size", PUBLISHED)
def test_the_model_files_fit_the_published_weights(size: str) -> None:
    embed_dim, mlp_dim, num_layers, num_heads = PUBLISHED[size]
    values = {
        **{"model_type": "t5", "vocab_size": 32128, "d_kv": 64, "d_model": embed_dim},
        **{"d_ff": mlp_dim, "num_layers": num_layers, "num_heads": num_heads},
        "feed_forward_proj": "gated-gelu",
    }
    published = to_model_config(values, "config.json", tied=False)
    configuration.parse_config([f"gin_configs/models/{size}.gin"])
    assert leaf_shapes(configuration.macro("MODEL").config) == leaf_shapes(published)
