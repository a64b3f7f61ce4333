"""The whole model: one encoder-decoder that scores, retrieves and generates (paper section 1).

    model = M6Rec(ModelConfig(vocab_size=8192, ...))
    variables = jax.jit(model.init)(key, features)          # {'params': ..., 'prompts': ...}
    outputs = model.apply(variables, features)               # states of both towers
    logits = model.apply(variables, outputs.hidden, task_ids, method=model.option_logits)

`variables` come boxed with logical axis names (`nn.LogicallyPartitioned`); `nn.meta.unbox` gives
plain arrays, and `apply` takes either.

Positions. Relative position bias knows only index differences. In the early layers of late
interaction attention stays inside one block, whose tokens are contiguous, so the plain index in the
row gives every block the same bias as if it stood alone. In the late layers (and in all layers when
L' = 0) positions are those of the concatenation: soft prompts at 0 … P-1, tokens from P on. The
decoder's packed candidates are contiguous blocks too, so their positions restart by themselves.

Everywhere below `task_ids` are int32 `[batch]` or `[batch, 1]`, `deterministic` means no dropout,
and block ids are int32 `[batch, length]`: contiguous blocks from 1, 0 is padding.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import masks
from m6rec_jax.model.attention import KeyValue, mask_bias
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.decoder_cache import DecoderCache
from m6rec_jax.model.decoding_layout import DECODING_COLLECTION
from m6rec_jax.model.dense import rows_dot
from m6rec_jax.model.embedding import TokenEmbedding, logits_head, logits_head_projection
from m6rec_jax.model.layer import dropout
from m6rec_jax.model.prompts import SIZES_COLLECTION, prompt_variable
from m6rec_jax.model.tower import Decoder, Look, Tower
from m6rec_jax.model.tuning import METHODS
from m6rec_jax.model.tuning.heads import class_logits, of_own_classes, project
from m6rec_jax.model.tuning.segment_embeddings import segment_embeddings
from m6rec_jax.model.tuning.soft_prompts import prompt_embeddings

Array = jax.Array
Features = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """What the decoder attends to.

    Attributes:
      hidden: `[batch, prompts + source, embed]`, after the final norm.
      mask: `[batch, prompts + source]` bool, False at padding.
      segment_ids: `[batch, prompts + source]` int32 of packed documents (soft prompts 0), or None.
    """

    hidden: Array
    mask: Array
    segment_ids: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """Final states of both towers.

    Attributes:
      encoded: the encoder's.
      hidden: the decoder's, `[batch, target, embed]`, after the final norm.
      exits: what `hidden` would be if the decoder ended at each exit, the last one included:
        `[exits, batch, target, embed]`. None where it was not asked for.
    """

    encoded: Encoded
    hidden: Array
    exits: Array | None = None


class PromptBank(nn.Module):
    """What tasks have outside of layers: `tensors`, by name, `[tasks, ...]`."""

    config: ModelConfig

    def setup(self) -> None:
        tasks = self.config.prompts.num_tasks
        self.tensors = {
            name: prompt_variable(self, tasks, name, *variable)
            for method in METHODS
            for name, variable in method.variables(self.config).items()
        }

    def sizes(self, name: str, configured: Sequence[int], task_ids: Array) -> Array | None:
        """Each example's number of that name; None where all tasks have the capacity."""
        if self.has_variable(SIZES_COLLECTION, name):
            sizes = self.get_variable(SIZES_COLLECTION, name)
        elif configured:
            sizes = jnp.asarray(configured, jnp.int32)
        else:
            return None
        return jnp.take(sizes, task_ids, axis=0)


@gin.configurable
class M6Rec(nn.Module):
    """Encoder, decoder, heads and the task bank; see the module's docstring."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        self.token_embedder = TokenEmbedding(config)
        depth, late = config.num_encoder_layers, config.late_layers_start
        self.encoder = Tower(config, num_layers=depth, first_late=late, bidirectional=True)
        depth, late = config.num_decoder_layers, config.first_cross_layer
        self.decoder = Decoder(config, num_layers=depth, first_late=late, bidirectional=False)
        self.bank = PromptBank(config)
        if not config.logits_via_embedding:
            self.logits_head = logits_head(config)
            if config.embedding_rank is not None:
                self.logits_head_projection = logits_head_projection(config)
        self.dropout = dropout(config)

    def __call__(
        self, features: Features, *, deterministic: bool = True, exits: bool = False
    ) -> Outputs:
        """Both towers over a batch.

        Args:
          features: int32 arrays. `encoder_input_tokens`, `encoder_block_ids` `[batch, source]`;
            `decoder_input_tokens`, `decoder_block_ids` `[batch, target]`; optional `task_ids`
            `[batch, 1]` (default 0), `retrieval` `[batch, 1]` (1: the decoder must not see the
            source), `encoder_segment_ids` and `decoder_segment_ids` (packed documents).
          deterministic: no dropout; otherwise pass `rngs={'dropout': key}`.
          exits: return the states at every exit, too.
        """
        tokens = features["encoder_input_tokens"]
        task_ids = features.get("task_ids", jnp.zeros((tokens.shape[0], 1), jnp.int32))
        retrieval = features.get("retrieval")
        encoded = self.encode(
            tokens,
            features["encoder_block_ids"],
            task_ids,
            segment_ids=features.get("encoder_segment_ids"),
            deterministic=deterministic,
        )
        hidden = self.decode(
            encoded,
            features["decoder_input_tokens"],
            features["decoder_block_ids"],
            task_ids,
            segment_ids=features.get("decoder_segment_ids"),
            use_source=None if retrieval is None else retrieval.reshape(-1) == 0,
            deterministic=deterministic,
            every=exits,
        )
        if exits:
            return Outputs(encoded, hidden[-1], hidden)
        if self.is_initializing():  # a head of its own has variables, too
            self.token_logits(hidden[:, :1])
        return Outputs(encoded, hidden)

    def embed(self, tokens: Array, task_ids: Array) -> Array:
        """Tokens of either tower, `[batch, length]`, as the task sees them: `[..., embed]`."""
        x = self.token_embedder(tokens)
        for method in METHODS:
            added = method.embedding(self.config, self.bank.tensors, tokens, task_ids)
            if added is not None:
                x = x + added
        x = x.astype(self.config.dtype)
        return nn.with_logical_constraint(x, ("batch", "length", "embed"))

    # The encoder: source text and soft prompts to states, at once or in parts.

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Encoded:
        """The encoder in one pass, soft prompts in front.

        Args:
          encoder_input_tokens: int32 `[batch, source]`.
          encoder_block_ids: int32 `[batch, source]`.
          segment_ids: int32 `[batch, source]` of packed documents from 1; None: one per row.
        """
        task_ids = task_ids.reshape(-1)
        tokens = self.embed(encoder_input_tokens, task_ids)
        prompts = prompt_embeddings(self.config, self.bank.tensors, task_ids)
        x = self.dropout(jnp.concatenate([prompts, tokens], axis=1), deterministic=deterministic)
        blocks = self._with_prompts(encoder_block_ids, task_ids)
        if segment_ids is not None:
            segment_ids = jnp.pad(segment_ids, ((0, 0), (prompts.shape[1], 0)))
        x = self._early(x, blocks, segment_ids, task_ids, deterministic=deterministic)
        return self._late(x, blocks, segment_ids, task_ids, deterministic=deterministic)

    def encode_segments(self, tokens: Array, block_ids: Array, task_ids: Array) -> Array:
        """The early layers alone, without dropout: what a segment cache holds.

        Each block of tokens `[batch, source]` is computed by itself, whether it has a row of its
        own or shares one, and whatever its id. Token -1 - i is soft prompt i of the row's task; all
        of them make one block.

        Returns:
          `[batch, source, embed]`, to be gathered into rows and given to `encode_late`.
        """
        task_ids = task_ids.reshape(-1)
        x = self.embed(jnp.maximum(tokens, 0), task_ids)
        prompts = prompt_embeddings(self.config, self.bank.tensors, task_ids)
        if number := prompts.shape[1]:
            index, is_prompt = -1 - tokens, tokens < 0
            soft = jnp.take_along_axis(prompts, jnp.clip(index, 0, number - 1)[..., None], axis=1)
            x = jnp.where(is_prompt[..., None], soft, x)
            given = jnp.take_along_axis(
                self._with_prompts(block_ids, task_ids), jnp.clip(index, 0, number - 1), axis=1
            )
            block_ids = jnp.where(is_prompt & (given == 0), 0, block_ids)
        return self._early(x, block_ids, None, task_ids, deterministic=True)

    def encode_late(self, hidden: Array, block_ids: Array, task_ids: Array) -> Encoded:
        """The late layers over cached segments; equals `encode` within float tolerance.

        Args:
          hidden: `[batch, prompts + source, embed]` of `encode_segments`: the soft prompts of a
            row, then its blocks, one after the other.
          block_ids: int32 `[batch, source]`, as `encode` would get them.
        """
        task_ids = task_ids.reshape(-1)
        blocks = self._with_prompts(block_ids, task_ids)
        return self._late(hidden, blocks, None, task_ids, deterministic=True)

    def _with_prompts(self, block_ids: Array, task_ids: Array) -> Array:
        prompts = self.config.prompts
        own = self.bank.sizes("num_prompts", prompts.task_num_prompts, task_ids)
        return masks.with_prompt_blocks(block_ids, prompts.num_prompts, own)

    def _early(
        self, x: Array, blocks: Array, segment_ids: Array | None, task_ids: Array, **options: bool
    ) -> Array:
        stop = self.config.late_layers_start
        mask = mask_bias(masks.block_mask(blocks, segment_ids))[:, None]
        return self.encoder.run(x, mask, task_ids, start=0, stop=stop, **options)

    def _late(
        self, x: Array, blocks: Array, segment_ids: Array | None, task_ids: Array, **options: bool
    ) -> Encoded:
        config = self.config
        start, stop = config.late_layers_start, config.num_encoder_layers
        if start > 0:
            added = segment_embeddings(config, self.bank.tensors, blocks, task_ids)
            if added is not None:
                x = x + added.astype(x.dtype)
        mask = mask_bias(masks.source_mask(blocks, segment_ids))[:, None]
        x = self.encoder.run(x, mask, task_ids, start=start, stop=stop, **options)
        return Encoded(self.encoder.finish(x, **options), blocks != 0, segment_ids)

    # The decoder: packed candidates or target text to states.

    def decode(
        self,
        encoded: Encoded,
        decoder_input_tokens: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        use_source: Array | None = None,
        deterministic: bool = True,
        every: bool = False,
    ) -> Array:
        """The decoder in one pass (teacher forcing).

        Args:
          encoded: of the same rows.
          decoder_input_tokens: int32 `[batch, target]`.
          decoder_block_ids: int32 `[batch, target]`: candidates, which do not see one another.
          segment_ids: int32 `[batch, target]` of packed documents, or None.
          use_source: bool `[batch]`; False: the row sees nothing of the encoder. None: all True.
            With `cross_attention_at` 'ends' only the ends of blocks see it in the other rows.
          every: return the states at all exits (`ModelConfig.num_exits`).

        Returns:
          `[batch, target, embed]`, after the final norm; with `every` `[exits, batch, ...]`.
        """
        options: dict[str, Any] = {"segment_ids": segment_ids, "deterministic": deterministic}
        inputs = (decoder_input_tokens, decoder_block_ids, task_ids)
        x = self.decode_early(*inputs, **options)
        options |= {"use_source": use_source, "every": every}
        return self.decode_late(encoded, x, *inputs[1:], **options)

    def decode_early(
        self,
        decoder_input_tokens: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """Embedding and the decoder layers without cross attention: cacheable per candidate.

        Returns:
          `[batch, target, embed]`; just the embeddings when late interaction is off.
        """
        task_ids = task_ids.reshape(-1)
        x = self.embed(decoder_input_tokens, task_ids)
        seen = masks.causal_mask(decoder_block_ids, segment_ids)
        tensors, tokens = self.bank.tensors, decoder_input_tokens
        for method in METHODS:
            added = method.candidate_embedding(self.config, tensors, tokens, x, seen, task_ids)
            if added is not None:
                x = x + added.astype(x.dtype)
        x = self.dropout(x, deterministic=deterministic)
        stop = self.config.first_cross_layer
        no_source = (None, None, None)
        mask = mask_bias(seen)[:, None]
        return self.decoder.run(
            x, mask, task_ids, *no_source, start=0, stop=stop, deterministic=deterministic
        )

    def decode_late(
        self,
        encoded: Encoded,
        hidden: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        *,
        segment_ids: Array | None = None,
        use_source: Array | None = None,
        deterministic: bool = True,
        every: bool = False,
    ) -> Array:
        """The decoder layers with cross attention over `decode_early`'s result; see `decode`."""
        mask, *source = self._seen(encoded, decoder_block_ids, segment_ids, use_source)
        x = self.decoder.run(
            hidden,
            mask,
            task_ids.reshape(-1),
            *source,
            start=self.config.first_cross_layer,
            stop=self.config.num_decoder_layers,
            deterministic=deterministic,
            every=every,
        )
        return self.decoder.finish(x, deterministic=deterministic)

    def _seen(
        self,
        encoded: Encoded,
        decoder_block_ids: Array,
        segment_ids: Array | None,
        use_source: Array | None,
    ) -> tuple[Array, Array, Array, Array | None]:
        """What late layers see: mask, source, source_mask and use_source, as `Layer` takes them."""
        mask = mask_bias(masks.causal_mask(decoder_block_ids, segment_ids))[:, None]
        cross = masks.cross_mask(encoded.mask, encoded.segment_ids, segment_ids)
        if self.config.cross_attention_at == "ends":
            ends = masks.block_ends(decoder_block_ids, segment_ids)
            use_source = ends if use_source is None else ends & use_source[:, None]
        return mask, encoded.hidden, mask_bias(cross)[:, None], use_source

    # With `cross_attention_at` 'ends': what a candidate is by itself, and what a user adds to it.

    def candidate_states(
        self, decoder_input_tokens: Array, decoder_block_ids: Array, task_ids: Array
    ) -> tuple[Array, KeyValue]:
        """What candidates are without a user: cacheable for each of them, and for each task.

        Args:
          decoder_input_tokens, decoder_block_ids: int32 `[batch, target]`.
          task_ids: int32 `[batch]` or `[batch, 1]`.

        Returns:
          `[batch, target, embed]` of `decode_early`, and the keys and values of the late layers,
          `[late layers, batch, heads, target, head_dim]`.
        """
        x = self.decode_early(decoder_input_tokens, decoder_block_ids, task_ids)
        mask = mask_bias(masks.causal_mask(decoder_block_ids, None))[:, None]
        return x, self.decoder.keys_without_source(x, mask, task_ids.reshape(-1))

    def decode_ends(
        self, encoded: Encoded, hidden: Array, past: KeyValue, visible: Array, task_ids: Array
    ) -> Array:
        """The late layers over the candidates' ends alone; equals `decode` there.

        Args:
          encoded: one document per row, `[sources, ...]`.
          hidden: `[rows, embed]` of `candidate_states` at the ends; those of a source together.
          past: of `candidate_states`, `[late layers, rows, heads, length, head_dim]`: each
            candidate's positions moved to the right, so that its end stands at length - 1.
          visible: bool `[rows, length]`, False before a candidate begins.
          task_ids: int32 `[sources]` or `[sources, 1]`.

        Returns:
          `[rows, embed]`, after the final norm.
        """
        x = self.decoder.run_ends(
            hidden[:, None], past, visible, encoded.hidden, encoded.mask, task_ids.reshape(-1)
        )
        return self.decoder.finish(x, deterministic=True)[:, 0]

    def decode_while(
        self,
        encoded: Encoded,
        hidden: Array,
        decoder_block_ids: Array,
        task_ids: Array,
        look: Look,
        carry: Any,
        going: Callable[[Any], Array],
    ) -> Any:
        """`decode_late` that ends when it has to, after any layer with cross attention.

        Args:
          encoded, hidden, decoder_block_ids, task_ids: as for `decode_late`.
          look: (state `[batch, target, embed]` after the final norm, number of the exit from 0,
            carry) → carry, after each of these layers.
          carry: what `look` begins with.
          going: whether, by the carry, the next layer is needed.

        Returns:
          The last carry.
        """
        mask, *source = self._seen(encoded, decoder_block_ids, None, None)
        return self.decoder.run_while(
            hidden,
            mask,
            task_ids.reshape(-1),
            *source,
            start=self.config.first_cross_layer,
            look=look,
            carry=carry,
            going=going,
        )

    # One token after the other with a cache: what generation loops over. Step for step this gives
    # what `decode` gives, within float tolerance. Every shape is fixed, so the loop may be a
    # `lax.while_loop` and may be exported.

    def start_decoding(
        self, encoded: Encoded, task_ids: Array, *, max_length: int, rows_per_source: int = 1
    ) -> DecoderCache:
        """An empty cache for targets of up to max_length input tokens, `[BOS]` included.

        Args:
          encoded: one document per row.
          task_ids: int32 `[sources]` or `[sources, 1]`, the tasks whose keys and values are wanted.
          max_length: the cache's length.
          rows_per_source: decoder rows (beams, samples) for each of the encoder's, next to one
            another.

        Raises:
          ConfigError: a model that only scores.
        """
        if self.config.cross_attention_at != "all":
            raise ConfigError(
                "this model was built with ModelConfig.cross_attention_at = 'ends': it scores "
                "candidates and cannot generate text"
            )
        num_rows, tasks = encoded.mask.shape[0] * rows_per_source, task_ids.reshape(-1)
        return self.decoder.start(encoded.hidden, encoded.mask, tasks, num_rows, max_length)

    def decode_step(
        self,
        cache: DecoderCache,
        tokens: Array,
        position: Array,
        task_ids: Array,
        column: Array | None = None,
    ) -> tuple[Array, DecoderCache]:
        """The state after one more input token per row.

        Rows need not stand at the same position. The cache goes round: every step fills one column
        for all rows, and a row sees as many columns before it as it has positions. So a row may
        start at any step, and where it starts changes nothing but the order of sums.

        Args:
          cache: holds the positions before.
          tokens: int32 `[rows]`; `[BOS]` at position 0.
          position: int32, of all rows or of each, `[rows]`.
          task_ids: int32 `[sources]` or `[sources, 1]`.
          column: int32 scalar, the column to fill: one more than in the step before, modulo the
            cache's length. None: the position, which all rows then share.

        Returns:
          `[rows, embed]` after the final norm, and the cache with this position.
        """
        task_ids = jnp.repeat(task_ids.reshape(-1), cache.rows_per_source)
        x = self.embed(tokens[:, None], task_ids)
        position = jnp.asarray(position, jnp.int32)
        column = position if column is None else jnp.asarray(column, jnp.int32)
        x, cache = self.decoder.step(x, cache, position, column, task_ids)
        return self.decoder.finish(x, deterministic=True)[:, 0], cache

    # What is read off the states.

    def token_logits(self, hidden: Array) -> Array:
        """Vocabulary logits, `[..., embed]` → `[..., vocab]`, float32."""
        tied = self.config.logits_via_embedding
        if self.config.embedding_rank is not None:
            to_rank = self.token_embedder.to_rank if tied else self.logits_head_projection
            hidden = to_rank(hidden)
        if self.has_variable(DECODING_COLLECTION, "logits"):
            logits = rows_dot(hidden, self.get_variable(DECODING_COLLECTION, "logits"))
            return logits * self.config.embed_dim**-0.5 if tied else logits
        logits = self.token_embedder.logits(hidden) if tied else self.logits_head(hidden)
        names = ("batch", "length", "vocab") if hidden.ndim == 3 else None
        return nn.with_logical_constraint(logits, names)

    def option_logits(self, hidden: Array, task_ids: Array) -> Array:
        """Class logits, `[batch, length, embed]` → `[batch, length, classes]`, float32.

        The state that counts is the one at `[EOS]`; see `tuning.heads.class_logits`. Classes that a
        task does not have score -1e9.
        """
        logits = class_logits(self.config, self.bank.tensors, hidden, task_ids.reshape(-1))
        own = self.num_options(task_ids)
        return logits if own is None else of_own_classes(self.config, logits, own)

    def num_options(self, task_ids: Array) -> Array | None:
        """Classes of each example's task, `[batch]`; None where all have the bank's capacity."""
        configured = self.config.prompts.task_num_options
        return self.bank.sizes("num_options", configured, task_ids.reshape(-1))

    def user_embedding(self, encoded: Encoded, task_ids: Array) -> Array:
        """Users for retrieval: the state at `[EOS']`, the last token of each row, projected.

        Returns:
          `[batch, retrieval]` of unit length, float32.
        """
        length = encoded.mask.shape[1]
        last = jnp.max(jnp.where(encoded.mask, jnp.arange(length), 0), axis=1)
        state = jnp.take_along_axis(encoded.hidden, last[:, None, None], axis=1)
        return project(self.bank.tensors["user_projection"], state, task_ids.reshape(-1))[:, 0]

    def item_embedding(self, hidden: Array, task_ids: Array) -> Array:
        """Items for retrieval: decoder states `[batch, length, embed]`, projected.

        Meaningful at `[EOS]`, in rows decoded with `use_source` False.

        Returns:
          `[batch, length, retrieval]` of unit length, float32.
        """
        return project(self.bank.tensors["item_projection"], hidden, task_ids.reshape(-1))


def initial_features() -> dict[str, Array]:
    """The smallest batch with which `M6Rec.init` makes every variable; sizes do not matter."""
    ones = jnp.ones((1, 2), jnp.int32)
    return {
        "encoder_input_tokens": ones,
        "encoder_block_ids": ones,
        "decoder_input_tokens": ones,
        "decoder_block_ids": ones,
    }


@functools.lru_cache(maxsize=64)
def abstract_variables(config: ModelConfig) -> Mapping[str, Any]:
    """Shapes and types of a model's variables, in boxes with logical names; nothing is computed."""
    # Inside `eval_shape` the key and the features compile nothing.
    return jax.eval_shape(lambda: M6Rec(config).init(jax.random.key(0), initial_features()))
