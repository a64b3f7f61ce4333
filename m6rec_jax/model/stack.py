"""A tower's layers as one stack of variables, of which any slice can be run.

All layers of a tower share one set of variables with a leading axis `layers`. A `lax.scan` over
slices of it runs layers [start, stop), so where late interaction begins (L') is a matter of slicing
and never of the checkpoint. (Two `nn.scan`s over one stack raise NameInUseError; scanning the
layer's pure `apply` does not.)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.dense import PRODUCT
from m6rec_jax.model.prompts import COLLECTION

Array = jax.Array
Variables = dict[str, Any]


class LayerStack(nn.Module):
    """The layers of one tower.

    Attributes:
      config: sizes, remat and unroll options, layer sharing.
      num_layers: depth.
      make_layer: returns a detached layer (`Layer(config, parent=None)`).
      example_inputs: returns arguments of the layer for initialisation, of small shapes: arrays
        must not become attributes of a module.
    """

    config: ModelConfig
    num_layers: int
    make_layer: Callable[[], nn.Module]
    example_inputs: Callable[[], tuple[Any, ...]]

    def setup(self) -> None:
        if self.is_initializing():
            self._initialise()
        # Where layers have no prompts, the collection may be missing altogether.
        self.layer_prompts = self._read(COLLECTION) if self.config.prompts.in_layers else {}

    def _initialise(self) -> None:
        """Makes one variable (a tree) per part of the layer, each leaf `[layers, ...]`."""
        layer, inputs = self.make_layer(), self.example_inputs()

        def one_layer(params: Array, prompts: Array) -> Variables:
            return layer.init({"params": params, "prompts": prompts}, *inputs)

        # Sharing keeps the axis, of length one, so that names and shardings stay the same.
        num_distinct = 1 if self.config.share_layers else self.num_layers
        keys = jax.random.split(self.make_rng("params"), num_distinct)
        keys = jnp.broadcast_to(keys, (self.num_layers, *keys.shape[1:]))
        variables = jax.vmap(one_layer)(
            keys, jax.random.split(self.make_rng(COLLECTION), self.num_layers)
        )
        variables["params"] = jax.tree.map(lambda leaf: leaf[:num_distinct], variables["params"])
        for collection, trees in meta.add_axis(variables, 0, {nn.PARTITION_NAME: "layers"}).items():
            for name, tree in trees.items():
                self.variable(collection, name, lambda tree=tree: tree)

    @property
    def layer_params(self) -> Variables:
        """What is no prompt, `[layers, ...]` each. (No attribute: Flax makes tuples of lists.)"""
        return self._read("params")

    @property
    def separate(self) -> bool:
        """Whether each is a list of the layers' own arrays (`decoding_layout`)."""
        return any(map(_is_list, jax.tree.leaves(self.layer_params, is_leaf=_is_list)))

    def _read(self, collection: str) -> Variables:
        variables = self.variables.get(collection)
        if not variables:
            where = f"the variables have no {collection!r} for {'/'.join(self.path)}"
            raise ConfigError(f"{where}; initialise them with the same ModelConfig")
        return meta.unbox(variables)

    def __call__(
        self,
        x: Array,
        *inputs: Any,
        start: int,
        stop: int,
        deterministic: bool,
        every: bool = False,
        **options: Any,
    ) -> Array:
        """Runs layers [start, stop).

        Args:
          x: `[batch, length, embed]`, what the layers pass on.
          inputs: further array arguments, the same for every layer.
          start, stop: the slice; an empty one returns x.
          deterministic: no dropout. Otherwise a `dropout` key is needed.
          every: return what each layer passes on, not the last one alone.
          options: static keyword arguments of the layer.

        Returns:
          `[batch, length, embed]`; with `every` `[stop - start, batch, length, embed]`.
        """
        if start >= stop:
            return x
        if self.is_initializing():  # `_initialise` has made all that there is
            return jnp.broadcast_to(x, (stop - start, *x.shape)) if every else x
        layer = self.make_layer()

        def run(variables: Variables, x: Array, key: Array | None) -> tuple[Array, Array | None]:
            rngs = None if key is None else {"dropout": key}
            x = layer.apply(
                variables, x, *inputs, deterministic=deterministic, rngs=rngs, **options
            )
            return x, x if every else None

        drops = not deterministic and self.config.dropout_rate > 0.0
        keys = jax.random.split(self.make_rng("dropout"), self.num_layers) if drops else None
        keys = None if keys is None else keys[start:stop]
        x, states = self.scan(
            run, x, keys, start=start, stop=stop, differentiable=not deterministic
        )
        return states if every else x

    def scan(
        self,
        run: Callable[[Variables, Any, Any], tuple[Any, Any]],
        carry: Any,
        own: Any,
        *,
        start: int,
        stop: int,
        differentiable: bool = False,
    ) -> tuple[Any, Any]:
        """Any function of one layer's variables, one layer of [start, stop) after the other.

        Args:
          run: (the layer's variables, carry, its slice of own) → (carry, its result).
          carry: what the layers pass on.
          own: a tree of arrays `[stop - start, ...]`, or of lists of as many arrays: what each
            layer has of its own; or None.
          start, stop: the slice, not empty.
          differentiable: whether gradients are wanted. Otherwise layers are taken out of their
            stacks one by one, so that there is never a copy of several.

        Returns:
          The last carry, and the results stacked, `[stop - start, ...]`; lists where the layers
          are `separate`.
        """
        config, params = self.config, self.layer_params
        shared = jax.tree.map(lambda leaf: leaf[0], params) if config.share_layers else None
        num_layers = stop - start
        one_by_one = num_layers < self.num_layers and not (differentiable or self.separate)

        def step(carry: Any, layer_slice: tuple[Any, Any]) -> Any:
            of_layer, own = layer_slice
            if one_by_one:
                return run(self.variables_of(of_layer), carry, own)
            params, prompts = of_layer
            variables = {"params": shared if params is None else params, COLLECTION: prompts}
            return run(variables, carry, own)

        stack = (None if config.share_layers else params, self.layer_prompts)
        slices: Any = jnp.arange(start, stop)
        if not one_by_one:
            slices = jax.tree.map(lambda leaf: leaf[start:stop], stack, is_leaf=_is_list)
        if self.separate:
            results = []
            for i in range(num_layers):
                one = jax.tree.map(lambda leaf, i=i: leaf[i], (slices, own), is_leaf=_is_list)
                carry, result = step(carry, one)
                results.append(result)
            return carry, jax.tree.map(lambda *layers: list(layers), *results)
        unroll = min(config.scan_unroll or num_layers, num_layers)
        step = _rematerialised(step, config.remat)
        # Shared layers without prompts or dropout leave nothing in `slices` to tell their number.
        return jax.lax.scan(step, carry, (slices, own), length=num_layers, unroll=unroll)

    def variables_of(self, layer: Array | int) -> Variables:
        """One layer's variables, of its number at run time."""
        own = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
        params, shared = self.layer_params, self.config.share_layers
        return {
            "params": jax.tree.map((lambda leaf: leaf[0]) if shared else own, params),
            COLLECTION: jax.tree.map(own, self.layer_prompts),
        }

    def run_while(
        self,
        run: Callable[[Variables, Array, Any], Any],
        carry: Any,
        going: Callable[[Any], Array],
        *,
        start: int | Array,
        stop: int,
    ) -> tuple[Any, Array]:
        """One layer after the other while `going` says so, which is known only at run time.

        Args:
          run: (a layer's variables, its number, carry) → carry.
          carry: what the layers pass on.
          going: whether, by the carry, the next layer is needed.
          start, stop: the layers at most.

        Returns:
          The last carry, and the number of the first layer that was not run.
        """

        def body(now: tuple[Array, Any]) -> tuple[Array, Any]:
            layer, carry = now
            return layer + 1, run(self.variables_of(layer), layer, carry)

        def unfinished(now: tuple[Array, Any]) -> Array:
            return (now[0] < stop) & going(now[1])

        layer, carry = jax.lax.while_loop(unfinished, body, (jnp.asarray(start, jnp.int32), carry))
        return carry, layer


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _rematerialised(step: Callable[..., Any], policy: str) -> Callable[..., Any]:
    if policy == "none":
        return step
    # Inside a scan the compiler cannot merge the recomputation with the forward pass, so the
    # barrier that prevents it (prevent_cse) would only cost.
    if policy == "full":
        return jax.checkpoint(step, prevent_cse=False)
    return jax.checkpoint(
        step,
        prevent_cse=False,
        # By name rather than `dots_saveable`, which would keep the products' float32 sums.
        policy=jax.checkpoint_policies.save_only_these_names(PRODUCT),
    )
