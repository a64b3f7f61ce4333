"""A loaded bank: a mixed batch is each task alone; tasks come and go without a compilation."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import pytest

from m6rec_jax.bank.capacity import BankCapacity
from m6rec_jax.bank.folder import TaskPrompts
from m6rec_jax.bank.loading import LoadedBank, load_bank
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import M6Rec, PromptConfig
from m6rec_jax.model.layout import prompt_leaves
from m6rec_jax.text import rows
from m6rec_jax.text.layout import pad_batch
from tests.bank.conftest import OPTIONS, ROOM, Alone, Backbone, make_prompts, save_backbone
from tests.pipeline import shop_rows

EXAMPLES = shop_rows.rows_of("test")["groups"]
HISTORIES = [example["history"] for example in EXAMPLES[:4]]
CANDIDATES = [example["candidates"][:2] for example in EXAMPLES[:4]]
SCORING = ("ctr", "stars", "genres", "probe")
# The bank pads to other shapes than a task alone has, and adds up in another order.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.fixture(scope="module")
def bank(bank_path: Path, backbone_dir: Path) -> LoadedBank:
    return load_bank(bank_path, backbone_dir)


def read_off(model: M6Rec, variables: Any, features: Any) -> dict[str, jax.Array]:
    """One forward pass, and all that the model's heads make of it."""
    outputs = model.apply(variables, features)
    task_ids = features["task_ids"]
    found = {
        "hidden": outputs.hidden,
        "tokens": jax.nn.log_softmax(
            model.apply(variables, outputs.hidden, method=model.token_logits)
        ),
    }
    if model.config.prompts.head != "none":
        logits = model.apply(variables, outputs.hidden, task_ids, method=model.option_logits)
        found["classes"] = jax.nn.softmax(logits)
    if model.config.prompts.retrieval_dim:
        found["user"] = model.apply(
            variables, outputs.encoded, task_ids, method=model.user_embedding
        )
        found["item"] = model.apply(
            variables, outputs.hidden, task_ids, method=model.item_embedding
        )
    return found


def test_one_batch_of_all_tasks_is_each_alone(
    bank: LoadedBank, alone: Alone, backbone: Backbone
) -> None:
    """Scoring with 2, 5 and 18 classes, retrieval, language: one forward pass over seven rows."""
    vocabulary, names = backbone.vocabulary, list(bank.tasks)
    made = [
        rows.source_row(vocabulary, EXAMPLES[i]["history"], 48)
        | rows.packed_candidates(vocabulary, EXAMPLES[i]["candidates"][:2], 24)
        | {"retrieval": np.array([bank.tasks[name].kind == "retrieval"], np.int32)}
        | {"task_ids": np.array([bank.tasks[name].task_id], np.int32)}
        for i, name in enumerate(names)
    ]
    lengths = {"encoder_input_tokens": 48, "encoder_block_ids": 48, "task_ids": 1, "retrieval": 1}
    lengths |= {"decoder_input_tokens": 24, "decoder_block_ids": 24}
    features = pad_batch(made, lengths)
    forward = jax.jit(read_off, static_argnums=0)
    mixed = forward(bank.model, bank.variables, features)
    for row, name in enumerate(names):
        own = {feature: values[row : row + 1] for feature, values in features.items()}
        own["task_ids"] = np.zeros((1, 1), np.int32)
        expected = forward(*alone(name), own)
        real = features["decoder_block_ids"][row] > 0
        for what, values in expected.items():
            wanted, found = np.asarray(values)[0], np.asarray(mixed[what])[row]
            if what != "user":
                wanted, found = wanted[real], found[real]
            width = wanted.shape[-1]
            np.testing.assert_allclose(
                found[..., :width], wanted, err_msg=f"{name} {what}", **CLOSE
            )
            # No probability for classes that a task does not have, no length of a vector either.
            np.testing.assert_array_equal(found[..., width:], 0.0)


def test_scores_of_a_mixed_batch(bank: LoadedBank, alone: Alone, backbone: Backbone) -> None:
    scorer = bank.scorer(batch_sizes=(8,), source_buckets=(48,), target_buckets=(24,))
    mixed = scorer.score_requests(HISTORIES, CANDIDATES, SCORING)
    for request, name in list(enumerate(SCORING))[1:3]:
        settings = dataclasses.replace(bank.tasks[name], task_id=0)
        options = dataclasses.replace(
            OPTIONS, tasks={"": settings}, source_buckets=(48,), target_buckets=(24,)
        )
        own = Scorer(*alone(name), backbone.vocabulary, options)
        expected = own.score_requests([HISTORIES[request]], [CANDIDATES[request]])[0]
        np.testing.assert_allclose(mixed[request], expected, **CLOSE)
        assert expected.min() > 1e-6
    # The prompts matter: another task's give something else.
    others = scorer.score_requests(HISTORIES, CANDIDATES, SCORING[1:] + SCORING[:1])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(mixed, others, strict=True))


def rows_of(bank: LoadedBank, names: tuple[str, ...]) -> dict[str, Any]:
    """Bytes of tasks' rows."""
    leaves = prompt_leaves(bank.model.config)  # where the axis of tasks is
    return {
        (name, tensor): np.take(
            np.asarray(array), bank.tasks[name].task_id, leaves[tensor].task_axis
        ).tobytes()
        for name in names
        for tensor, array in flatten(bank.variables["prompts"]).items()
    }


def test_adding_touches_nothing_and_compiles_nothing(bank_path: Path, backbone_dir: Path) -> None:
    there = ("ctr", "stars", "probe", "next", "titles")
    bank = load_bank(bank_path, backbone_dir, tasks=there, capacity=ROOM)
    scorer = bank.scorer("ctr", batch_sizes=(8,), source_buckets=(48,), target_buckets=(24,))
    retriever = bank.retriever("next", batch_sizes=(8,))
    scorer.warm_up()
    before = rows_of(bank, there)
    scores = scorer.score_requests(HISTORIES, CANDIDATES, ["ctr", "stars", "probe", "ctr"])
    vectors = retriever.embed_users(HISTORIES)
    assert COMPILED  # what has been compiled so far was noticed
    COMPILED.clear()

    shapes = {"batch_sizes": (8,), "source_buckets": (48,), "target_buckets": (24,)}
    larger = bank.with_tasks("genres")
    mixed = larger.scorer("ctr", **shapes).score_requests(
        HISTORIES, CANDIDATES, ["ctr", "stars", "probe", "genres"]
    )
    assert rows_of(larger, there) == before
    for row in range(3):
        np.testing.assert_array_equal(mixed[row], scores[row])
    assert 0 < mixed[3].min() < mixed[3].max() < 1

    with pytest.raises(ConfigError, match=r"no room for 'near': all 6 rows .*num_tasks"):
        larger.with_tasks("near")
    other = larger.without("genres").with_tasks("near")
    with pytest.raises(ConfigError, match="knows no task 'genres': ctr, near, next"):
        other.scorer("ctr").score_requests(HISTORIES[:1], CANDIDATES[:1], ["genres"])
    assert other.tasks["near"].task_id == 5  # the row of genres
    retriever = other.retriever("next", batch_sizes=(8,))
    retriever.embed_users(HISTORIES, ["near"] * 4)
    np.testing.assert_array_equal(retriever.embed_users(HISTORIES), vectors)
    assert rows_of(other, there) == before
    assert COMPILED == []
    assert other.template("near").outcome(1.0) == "liked"
    # The first bank is as it was.
    np.testing.assert_array_equal(
        scorer.score_requests(HISTORIES, CANDIDATES, ["ctr", "stars", "probe", "ctr"]), scores
    )
    assert sorted(bank.tasks) == sorted(there)


def bytes_on_devices() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_a_hundred_swaps_hold_one_bank(bank_path: Path, backbone_dir: Path) -> None:
    """Programs outlive the engines that made them, and hold nothing of theirs."""

    def answer(bank: LoadedBank) -> None:
        bank.scorer(batch_sizes=(8,)).score_requests(HISTORIES, CANDIDATES, ["ctr"] * 4)
        bank.generator("titles", batch_sizes=(4,)).write(
            [TextRequest(history, task="titles") for history in HISTORIES]
        )

    bank = load_bank(bank_path, backbone_dir, tasks=["ctr", "titles"])
    answer(bank)
    before = bytes_on_devices()
    for _ in range(100):
        bank = bank.without("ctr").with_tasks("ctr")
        answer(bank)
    assert bytes_on_devices() == before


def test_the_decoder_is_laid_out_once(bank_path: Path, backbone_dir: Path) -> None:
    """For all engines and all states of a bank."""
    bank = load_bank(bank_path, backbone_dir, tasks=["ctr", "titles"])
    first = bank.generator("titles")._decoding_variables()
    changed = bank.without("ctr")
    other = changed.generator("titles", target_length=8)._decoding_variables()
    assert first["params"] is other["params"]
    assert first["decoding"] is other["decoding"]


def test_room_for_what_no_task_has_yet(
    bank_path: Path, backbone_dir: Path, backbone: Backbone, all_prompts: dict[str, TaskPrompts]
) -> None:
    """The adapters' activation, and adapters below L', can be told before a task needs them."""
    late = all_prompts["next"].manifest.prompts
    assert late.adapters_late_only
    assert BankCapacity().prompt_config([late]).adapters_late_only
    assert not BankCapacity(adapters_late_only=False).prompt_config([late]).adapters_late_only
    assert not BankCapacity(embedding_rank=1).prompt_config([late]).adapters_late_only
    assert not BankCapacity().prompt_config([late, PromptConfig(pooling_rank=1)]).adapters_late_only
    assert BankCapacity().prompt_config([]).adapter_activation == "gelu"

    manifest = all_prompts["ctr"].manifest
    relu = PromptConfig(
        num_prompts=6, num_options=5, head="option", adapter_rank=3, adapter_activation="relu"
    )
    other = make_prompts(backbone, "other", relu, manifest.settings, 0)
    room: dict[str, Any] = {"num_options": 5, "num_prompts": 6, "adapter_rank": 3}
    without = load_bank(bank_path, backbone_dir, tasks=["probe"], capacity=BankCapacity(**room))
    with pytest.raises(CheckpointError, match="adapter_activation"):
        without.with_tasks(other)
    told = BankCapacity(**room, adapter_activation="relu")
    load_bank(bank_path, backbone_dir, tasks=["probe"], capacity=told).with_tasks(other)


def test_a_backbone_in_bfloat16(bank: LoadedBank, bank_path: Path, backbone_dir: Path) -> None:
    half = load_bank(bank_path, backbone_dir, frozen_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.variables["params"])} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.variables["prompts"])} == {"float32"}
    found, whole = (
        np.stack(one.scorer().score_requests(HISTORIES, CANDIDATES, SCORING))
        for one in (half, bank)
    )
    assert np.abs(found - whole).max() > 0.0
    # A weight keeps 8 bits; its error passes through two layers.
    np.testing.assert_allclose(found, whole, rtol=0.1)


def test_settings_of_a_run_in_this_process_are_not_the_banks(
    bank_path: Path, backbone_dir: Path
) -> None:
    """As in a notebook after training, or where --gin_file names the run's own file."""
    gin.parse_config(
        """
        PromptConfig.task_num_options = (2, 5, 0)
        PromptConfig.lora_scale = 0.0
        PromptConfig.num_prompts = 3
        """
    )
    try:
        bank = load_bank(bank_path, backbone_dir, tasks="ctr")  # one name, not its letters
    finally:
        gin.clear_config()
    assert sorted(bank.tasks) == ["ctr"]
    own = bank.model.config.prompts
    assert (own.task_num_options, own.lora_scale, own.num_prompts) == ((), 1.0, 5)


def test_where_layers_begin_may_be_said_or_left_to_the_default(
    bank_path: Path, backbone_dir: Path, backbone: Backbone, all_prompts: dict[str, TaskPrompts]
) -> None:
    bank = load_bank(bank_path, backbone_dir, tasks=["ctr", "next"])
    small = all_prompts["probe"].manifest
    config = backbone.config
    assert config.decoder_late_start is None
    for start, fits in ((config.first_cross_layer, True), (0, False)):
        said = backbone._replace(config=config.replace(decoder_late_start=start))
        prompts = make_prompts(said, f"from_{start}", small.prompts, small.settings, 1)
        if fits:
            bank.with_tasks(prompts)
        else:
            with pytest.raises(CheckpointError, match="decoder_late_start"):
                bank.with_tasks(prompts)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_does_not_fit_leaves_the_bank_as_it_was(
    bank_path: Path,
    backbone_dir: Path,
    backbone: Backbone,
    all_prompts: dict[str, TaskPrompts],
    tmp_path: Path,
) -> None:
    copied = shutil.copytree(bank_path, tmp_path / "bank")
    bank = load_bank(copied, backbone_dir, tasks=["ctr", "next"])
    variables, tasks = dict(bank.variables), dict(bank.tasks)
    damage(copied / "titles.safetensors")
    small = all_prompts["probe"].manifest
    arguments = ("probe", small.prompts, small.settings, 1)
    scaled = dataclasses.replace(small.prompts, ia3_targets=("key",))
    stranger = backbone._replace(params=jax.tree.map(lambda x: x * 1.01, backbone.params))
    late = backbone._replace(config=backbone.config.replace(late_layers_start=2))
    words = shop_rows.make_vocabulary(tmp_path, size=320)
    for added, kind, message in (
        (["titles"], CheckpointError, "titles.safetensors is damaged"),
        (["nothing"], CheckpointError, "no task 'nothing'"),
        (["genres"], ConfigError, r"num_options = 18 \(the bank: 2\)"),
        (["near"], ConfigError, "lora_rank = 3"),
        ([make_prompts(backbone, "x", scaled, small.settings, 1)], ConfigError, "ia3_targets"),
        ([all_prompts["probe"], all_prompts["ctr"]], ConfigError, "a task 'ctr' already"),
        ([make_prompts(stranger, *arguments)], CheckpointError, "backbone"),
        ([make_prompts(backbone._replace(vocabulary=words), *arguments)], CheckpointError, "vocab"),
        ([make_prompts(late, *arguments)], CheckpointError, "late_layers_start"),
    ):
        with pytest.raises(kind, match=message):
            bank.with_tasks(*added)
    assert bank.tasks == tasks
    assert all(bank.variables[name] is tree for name, tree in variables.items())

    elsewhere = save_backbone(tmp_path / "stranger", stranger)
    with pytest.raises(CheckpointError, match="backbone_fingerprint"):
        load_bank(copied, elsewhere, tasks=["ctr"])
    with pytest.raises(ConfigError, match=r"BankCapacity.num_tasks = 1, but the bank has 2"):
        load_bank(copied, backbone_dir, tasks=["ctr", "next"], capacity=BankCapacity(num_tasks=1))
