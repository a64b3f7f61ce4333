"""A model's own floating point operations, counted from its sizes: what a step must compute.

The convention is that of Kaplan et al. (2020) and PaLM (Chowdhery et al., 2022): two operations for
each parameter and token in a forward pass, four more in a backward pass (two where only activations
get gradients), attention's own products on top. What a compiler adds (recomputation, padding) is
not the model's. Embedding look-ups, norms and activations count nothing.

Decoder parameters count once per target token. Among them are those that make cross attention's
keys and values, of source tokens, so a program that wastes nothing executes somewhat more than
this.
"""

from __future__ import annotations

import dataclasses

from m6rec_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of one step.

    Attributes:
      towers: of the encoder's parameters over source tokens and the decoder's over target tokens.
      attention: queries with keys, weights with values.
      head: vocabulary logits.
      prompts: of adapters, LoRA updates and option heads.
    """

    towers: int
    attention: int
    head: int
    prompts: int

    @property
    def total(self) -> int:
        return self.towers + self.attention + self.head + self.prompts


def train_flops(
    config: ModelConfig,
    rows: int,
    source_length: int,
    target_length: int,
    *,
    trainable: str,
    language_modelling: bool = True,
) -> ModelFlops:
    """A training step: 6 N with everything trained, 4 N and what trains with a frozen backbone.

    Args:
      config: of the model.
      rows: of a step.
      source_length, target_length: tokens of a row; soft prompts come on top of the source.
      trainable: 'all' or 'prompts'.
      language_modelling: the loss needs vocabulary logits.
    """
    forward = _forward(config, rows, source_length, target_length)
    passes = 3 if trainable == "all" else 2 if _backward_through_towers(config) else 1
    return ModelFlops(
        towers=passes * forward.towers,
        # Where gradients pass, both sides of attention's products need them, whatever trains.
        attention=(3 if passes > 1 else 1) * forward.attention,
        head=passes * forward.head if language_modelling else 0,
        prompts=3 * forward.prompts,
    )


def score_flops(
    config: ModelConfig, rows: int, source_length: int, target_length: int
) -> ModelFlops:
    """A forward pass that ends in class scores."""
    forward = _forward(config, rows, source_length, target_length)
    return dataclasses.replace(forward, head=0)


def decode_flops(
    config: ModelConfig, rows: int, source_length: int, target_length: int
) -> ModelFlops:
    """Encoding once and writing target_length tokens with a cache, one after the other."""
    return _forward(config, rows, source_length, target_length)


def tower_parameters(config: ModelConfig) -> tuple[int, int]:
    """Weights of the encoder's and the decoder's products, shared layers as often as they run."""
    heads = config.num_heads * config.head_dim
    attention = 4 * config.embed_dim * heads
    mlp = (len(config.mlp_activations) + 1) * config.embed_dim * config.mlp_dim
    with_source = config.num_decoder_layers - config.first_cross_layer
    encoder = config.num_encoder_layers * (attention + mlp)
    decoder = config.num_decoder_layers * (attention + mlp) + with_source * attention
    return encoder, decoder


def _forward(config: ModelConfig, rows: int, source_length: int, target_length: int) -> ModelFlops:
    prompts = config.prompts
    source = source_length + prompts.num_prompts
    encoder, decoder = tower_parameters(config)
    with_source = config.num_decoder_layers - config.first_cross_layer
    pairs = (
        config.num_encoder_layers * source**2
        + config.num_decoder_layers * target_length**2
        + with_source * target_length * source
    )
    heads = config.num_heads * config.head_dim
    in_encoder, in_decoder = _prompt_parameters(config)
    return ModelFlops(
        towers=2 * rows * (encoder * source + decoder * target_length),
        attention=rows * 2 * 2 * heads * pairs,
        head=2 * rows * target_length * config.embed_dim * config.vocab_size,
        prompts=2 * rows * (in_encoder * source + in_decoder * target_length),
    )


def _backward_through_towers(config: ModelConfig) -> bool:
    """Something below the heads trains with a frozen backbone."""
    prompts = config.prompts
    return prompts.in_layers or bool(
        prompts.num_prompts or prompts.special_token_ids or prompts.num_segment_embeddings
    )


def _prompt_parameters(config: ModelConfig) -> tuple[int, int]:
    """What a token of either tower meets of its task's own parameters, in products."""
    prompts, embed = config.prompts, config.embed_dim
    late_only = prompts.adapters_late_only
    encoder_layers = config.num_encoder_layers - (config.late_layers_start if late_only else 0)
    skipped = config.first_cross_layer if late_only else 0
    decoder_layers = config.num_decoder_layers - skipped
    with_source = config.num_decoder_layers - config.first_cross_layer
    adapter = 2 * embed * prompts.adapter_rank
    heads = config.num_heads * config.head_dim
    lora = len(prompts.lora_targets) * prompts.lora_rank * (embed + heads)
    options = embed * prompts.num_options if prompts.head != "none" else 0
    return (
        encoder_layers * (adapter + lora),
        decoder_layers * (adapter + lora) + with_source * lora + options,
    )
