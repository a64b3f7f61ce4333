"""Counts by group against counts by hand."""

from __future__ import annotations

import dataclasses

from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.training.parameter_table import count_parameters

D, LAYERS, HEADS, WIDTH, MLP, V, R = 16, 2, 2, 8, 32, 64, 3
CONFIG = ModelConfig(
    vocab_size=V,
    embed_dim=D,
    num_encoder_layers=LAYERS,
    num_decoder_layers=LAYERS,
    num_heads=HEADS,
    head_dim=WIDTH,
    mlp_dim=MLP,
    late_layers_start=1,
    prompts=PromptConfig(
        num_tasks=2,
        num_prompts=6,
        num_options=2,
        head="option",
        adapter_rank=R,
        lora_rank=3,
        lora_targets=("out",),
        embedding_rank=4,
        pooling_rank=5,
        special_token_ids=(1, 2),
        retrieval_dim=8,
        num_segment_embeddings=4,
    ),
)


def test_counts_by_hand() -> None:
    table = count_parameters(CONFIG, "prompts")
    counts = {(group.part, group.name): group.count for group in table.groups}
    attention = 4 * D * HEADS * WIDTH
    mlp = 3 * D * MLP
    tower = D + 32 * HEADS  # final norm and relative bias
    adapter = D * R + R + R * D + D + 1
    assert counts == {
        ("backbone", "embedding"): V * D,
        ("backbone", "encoder"): LAYERS * (attention + mlp + 2 * D) + tower,
        ("backbone", "decoder"): LAYERS * (2 * attention + mlp + 3 * D) + tower,
        ("backbone", "head"): V * D,
        ("prompts", "adapters"): 2 * 2 * LAYERS * adapter,
        ("prompts", "LoRA"): 2 * 3 * LAYERS * 3 * (HEADS * WIDTH + D),
        ("prompts", "embedding updates"): 2 * 4 * (V + D),
        ("prompts", "pooling"): 2 * 5 * 2 * D,
        ("prompts", "soft prompts"): 2 * 6 * D,
        ("prompts", "special tokens"): 2 * 2 * D,
        ("prompts", "segment embeddings"): 2 * 4 * D,
        ("prompts", "projections"): 2 * 2 * D * 8,
    }
    assert all(group.num_bytes == 4 * group.count for group in table.groups)


def test_tasks_of_unlike_sizes_are_told_apart() -> None:
    unlike = dataclasses.replace(
        CONFIG.prompts, task_adapter_ranks=(R, 1), task_num_prompts=(6, 3), task_lora_ranks=(3, 1)
    )
    table = count_parameters(CONFIG.replace(prompts=unlike), "prompts")
    alone = [count_parameters(CONFIG.replace(prompts=unlike.of_task(i)), "prompts") for i in (0, 1)]
    assert table.of_tasks == tuple(one.count("prompts") for one in alone)
    assert 2 * table.of_tasks[0] > 3 * table.of_tasks[1]
    assert table.trainable_share == alone[0].trainable_share


def test_bytes_as_stored() -> None:
    """A frozen backbone may be kept in bfloat16; what trains is float32 always."""
    table = count_parameters(CONFIG, "prompts", "bfloat16")
    backbone, prompts = table.count("backbone"), table.count("prompts")
    assert table.num_bytes == 2 * backbone + 4 * prompts
    assert count_parameters(CONFIG, "all", "bfloat16").num_bytes == 4 * (backbone + prompts)
    rows = [line.strip("| ").split() for line in table.render().replace("|", " ").splitlines()]
    share = f"{prompts / backbone:.2%}"
    assert ["both", "trains", f"{prompts:,}", share, f"{4 * prompts:,}"] in rows
