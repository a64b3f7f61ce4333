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
from collections.abc import Mapping, Sequence

from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.tuning import METHODS
from m6rec_jax.model.tuning.method import Site, attention_sites, feed_forward_sites


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of one step.

    Attributes:
      towers: of the encoder's parameters over source tokens and the decoder's over target tokens;
        of a factorised embedding's projection over both.
      attention: queries with keys, weights with values.
      head: vocabulary logits.
      prompts: of what tasks have of their own: adapters, LoRA and so on, and class heads.
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
    """An attention or a feed-forward layer, as tasks change it.

    Attributes:
      parameters: of the backbone's products.
      own: of the task's products.
      pairs: of queries and keys.
      behind: of the products that gradients pass on their way to the lowest thing of the task's in
        it; None: nothing of it is the task's.
      reads_source: it is cross attention.
    """

    parameters: int
    own: int = 0
    pairs: int = 0
    behind: int | None = None
    reads_source: bool = False


def _encoder(config: ModelConfig, source: int) -> list[_Sublayer]:
    sublayers = []
    for layer in range(config.num_encoder_layers):
        if layer and layer == config.late_layers_start and config.prompts.num_segment_embeddings:
            sublayers.append(_Sublayer(0, behind=0))
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
    projection = config.embed_dim * config.num_heads * config.head_dim
    matrix = config.embed_dim * config.mlp_dim
    tuned = is_late or not config.prompts.adapters_late_only

    def changed(sites: Mapping[str, Site], behind: Mapping[str, int]) -> tuple[int, int | None]:
        """The task's own products, and those on the way to the lowest of its sites."""
        found = [
            (method.site_products(config, sites[name]), behind[name])
            for method in METHODS
            for name in method.sites(config.prompts)
            if tuned and name in sites
        ]
        return sum(own for own, _ in found), max((way for _, way in found), default=None)

    # With nothing below that trains, gradients pass the last of an attention's four products alone.
    own, behind = changed(
        attention_sites(config), dict.fromkeys(attention_sites(config), projection)
    )
    sublayers = [_Sublayer(4 * projection, own, pairs, behind)]
    if cross_pairs is not None:
        sublayers.append(_Sublayer(4 * projection, own, cross_pairs, behind, reads_source=True))
    own, behind = changed(feed_forward_sites(config), {"hidden": matrix, "mlp": 0})
    mlp = (len(config.mlp_activations) + 1) * matrix
    return [*sublayers, _Sublayer(mlp, own, behind=behind)]


def _towers(
    config: ModelConfig,
    rows: int,
    lengths: tuple[int, int],
    encoder: Sequence[_Sublayer],
    decoder: Sequence[_Sublayer],
) -> ModelFlops:
    """One pass through sublayers of both towers."""

    def met(attribute: str) -> int:
        """Parameters, as often as tokens meet them."""
        towers = zip((encoder, decoder), lengths, strict=True)
        return sum(getattr(one, attribute) * length for tower, length in towers for one in tower)

    pairs = sum(one.pairs for one in (*encoder, *decoder))
    heads = config.num_heads * config.head_dim
    attention = rows * 2 * 2 * heads * pairs
    return ModelFlops(2 * rows * met("parameters"), attention, 0, 2 * rows * met("own"))


def _forward(config: ModelConfig, rows: int, source_length: int, target_length: int) -> ModelFlops:
    prompts, embed = config.prompts, config.embed_dim
    lengths = source_length + prompts.num_prompts, target_length
    encoder, decoder = _encoder(config, lengths[0]), _decoder(config, *lengths)
    towers = _towers(config, rows, lengths, encoder, decoder)
    per_token = sum(method.token_products(config) for method in METHODS)
    of_candidate = sum(method.candidate_products(config) for method in METHODS)
    products = per_token * (source_length + target_length) + of_candidate * target_length
    products += target_length * embed * (prompts.num_options if prompts.head != "none" else 0)
    head = 2 * rows * target_length * config.embedding_width * config.vocab_size
    looked_up = 0
    if config.embedding_rank is not None:
        projection = 2 * rows * config.embedding_rank * embed
        looked_up = projection * (source_length + target_length)
        head += projection * target_length
    pairs = 2 * rows * target_length**2 * sum(method.pair_products(config) for method in METHODS)
    return ModelFlops(
        towers.towers + looked_up,
        towers.attention + pairs,
        head,
        towers.prompts + 2 * rows * products,
    )


def _passed_back(
    config: ModelConfig, rows: int, source_length: int, target_length: int
) -> ModelFlops:
    """What gradients take on their way back through a frozen backbone.

    Parameters get none, so their products count once; both sides of attention's products do.
    """
    prompts = config.prompts
    lengths = source_length + prompts.num_prompts, target_length
    changed = {tower for method in METHODS if method.used(prompts) for tower in method.towers}
    encoder, source_trains = _reached(
        _encoder(config, lengths[0]), "encoder" in changed or prompts.num_prompts > 0
    )
    decoder, trains = _reached(_decoder(config, *lengths), "decoder" in changed, source_trains)
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
        elif one.behind:
            passed.append(dataclasses.replace(one, parameters=one.behind))
        trains_below |= one.behind is not None
    return passed, trains_below
