"""A model's own floating point operations, counted from its sizes: what a step must compute.

The convention is that of Kaplan et al. (2020) and PaLM (Chowdhery et al., 2022): two operations for
each parameter and token in a forward pass, four more in a backward pass (two where only activations
get gradients, none below the lowest thing that trains), attention's own products on top. What a
compiler adds (recomputation, padding) is not the model's. Embedding look-ups, norms and activations
count nothing.

Decoder parameters count once per target token. Among them are those that make cross attention's
keys and values, of source tokens, so a program that wastes nothing executes somewhat more than
this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from m6rec_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of one step.

    Attributes:
      towers: of the encoder's parameters over source tokens and the decoder's over target tokens.
      attention: queries with keys, weights with values.
      head: vocabulary logits.
      prompts: of adapters, LoRA and embedding updates and option heads.
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
    """A training step: 6 N with everything trained, up to 4 N and what trains with a frozen one.

    A frozen backbone passes gradients back to the lowest thing that trains, and no further.

    Args:
      config: of the model.
      rows: of a step.
      source_length, target_length: tokens of a row; soft prompts come on top of the source.
      trainable: 'all' or 'prompts'.
      language_modelling: the loss needs vocabulary logits.
    """
    forward = _forward(config, rows, source_length, target_length)
    if trainable == "all":
        back = ModelFlops(2 * forward.towers, 2 * forward.attention, 2 * forward.head, prompts=0)
    else:
        back = _passed_back(config, rows, source_length, target_length)
    return ModelFlops(
        towers=forward.towers + back.towers,
        attention=forward.attention + back.attention,
        head=forward.head + back.head if language_modelling else 0,
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Sublayer:
    """An attention or a feed-forward layer.

    Attributes:
      parameters: of its products.
      pairs: of queries and keys.
      trains_inside: it has LoRA updates. With nothing below that trains, gradients pass the last
        of an attention's four products alone.
      trains_beside: gradients go past its products to an adapter.
      reads_source: it is cross attention.
    """

    parameters: int
    pairs: int = 0
    trains_inside: bool = False
    trains_beside: bool = False
    reads_source: bool = False


def _encoder(config: ModelConfig, source: int) -> list[_Sublayer]:
    sublayers = []
    for layer in range(config.num_encoder_layers):
        if layer and layer == config.late_layers_start and config.prompts.num_segment_embeddings:
            sublayers.append(_Sublayer(0, trains_beside=True))
        sublayers += _layer(config, layer >= config.late_layers_start, source**2)
    return sublayers


def _decoder(config: ModelConfig, source: int, target: int) -> list[_Sublayer]:
    sublayers = []
    for layer in range(config.num_decoder_layers):
        is_late = layer >= config.first_cross_layer
        sublayers += _layer(config, is_late, target**2, target * source if is_late else None)
    return sublayers


def _layer(
    config: ModelConfig, is_late: bool, pairs: int, cross_pairs: int | None = None
) -> list[_Sublayer]:
    prompts = config.prompts
    has_prompts = is_late or not prompts.adapters_late_only
    updated, adapted = (
        has_prompts and rank > 0 for rank in (prompts.lora_rank, prompts.adapter_rank)
    )
    attention, mlp = _sublayer_parameters(config)
    sublayers = [_Sublayer(attention, pairs, trains_inside=updated)]
    if cross_pairs is not None:
        sublayers.append(
            _Sublayer(attention, cross_pairs, trains_inside=updated, reads_source=True)
        )
    return [*sublayers, _Sublayer(mlp, trains_beside=adapted)]


def _sublayer_parameters(config: ModelConfig) -> tuple[int, int]:
    """Of an attention and of a feed-forward layer."""
    heads = config.num_heads * config.head_dim
    mlp = (len(config.mlp_activations) + 1) * config.embed_dim * config.mlp_dim
    return 4 * config.embed_dim * heads, mlp


def _towers(
    config: ModelConfig,
    rows: int,
    lengths: tuple[int, int],
    encoder: Sequence[_Sublayer],
    decoder: Sequence[_Sublayer],
) -> ModelFlops:
    """One pass through sublayers of both towers."""
    parameters = (sum(one.parameters for one in tower) for tower in (encoder, decoder))
    pairs = sum(one.pairs for one in (*encoder, *decoder))
    met = sum(count * length for count, length in zip(parameters, lengths, strict=True))
    heads = config.num_heads * config.head_dim
    return ModelFlops(2 * rows * met, rows * 2 * 2 * heads * pairs, head=0, prompts=0)


def _forward(config: ModelConfig, rows: int, source_length: int, target_length: int) -> ModelFlops:
    lengths = source_length + config.prompts.num_prompts, target_length
    towers = _towers(
        config, rows, lengths, _encoder(config, lengths[0]), _decoder(config, *lengths)
    )
    in_encoder, in_decoder = _prompt_parameters(config)
    in_embedding = config.embed_dim * config.prompts.embedding_rank
    products = in_encoder * lengths[0] + in_decoder * lengths[1]
    products += in_embedding * (source_length + target_length)
    return dataclasses.replace(
        towers,
        head=2 * rows * target_length * config.embed_dim * config.vocab_size,
        prompts=2 * rows * products,
    )


def _passed_back(
    config: ModelConfig, rows: int, source_length: int, target_length: int
) -> ModelFlops:
    """What gradients take on their way back through a frozen backbone.

    Parameters get none, so their products count once; both sides of attention's products do.
    """
    prompts = config.prompts
    lengths = source_length + prompts.num_prompts, target_length
    # Tokens of either tower.
    embeddings = bool(prompts.special_token_ids) or prompts.embedding_rank > 0
    encoder, source_trains = _reached(
        _encoder(config, lengths[0]), embeddings or prompts.num_prompts > 0
    )
    decoder, trains = _reached(_decoder(config, *lengths), embeddings, source_trains)
    back = _towers(config, rows, lengths, encoder, decoder)
    head = _forward(config, rows, source_length, target_length).head if trains else 0
    return dataclasses.replace(back, attention=2 * back.attention, head=head)


def _reached(
    sublayers: Sequence[_Sublayer], trains_below: bool, source_trains: bool = False
) -> tuple[list[_Sublayer], bool]:
    """Sublayers that gradients pass on their way down, and whether there are any gradients."""
    passed = []
    for one in sublayers:
        trains_below |= one.reads_source and source_trains
        if trains_below:
            passed.append(one)
        elif one.trains_inside:
            passed.append(dataclasses.replace(one, parameters=one.parameters // 4))
        trains_below |= one.trains_inside or one.trains_beside
    return passed, trains_below


def _prompt_parameters(config: ModelConfig) -> tuple[int, int]:
    """What a token of either tower meets in layers and heads of its task's own, in products."""
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
