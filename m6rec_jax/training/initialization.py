"""The first state of a run: random, or with another run's weights (INITIAL_CHECKPOINT_PATH)."""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.checkpoints.checkpoint import PARAMS, PROMPTS, Checkpoint, open_checkpoint
from m6rec_jax.checkpoints.manifest import (
    Manifest,
    RunDescription,
    differences,
    same_task_sizes,
)
from m6rec_jax.checkpoints.trees import PyTree, flatten, unflatten
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.layout import TASKS, prompt_leaves, tasks_with_whole_slice
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.model.tuning import METHODS
from m6rec_jax.sharding import replicated
from m6rec_jax.training.train_state import TrainSetup, TrainState

INITIAL_PROMPTS = ("none", "all", "matching")
Variables = dict[str, PyTree]
# Settings of a backbone that change what it computes and no size.
_ARITHMETIC = (
    "mlp_activations",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "late_layers_start",
    "decoder_late_start",
    "cross_attention_at",
)
logger = logging.getLogger(__name__)


def initial_variables(setup: TrainSetup, params: PyTree | None = None) -> Variables:
    """Random variables, computed where they will live. The mesh does not change their values.

    Args:
      setup: of the run.
      params: a backbone, placed as in `setup.abstract_state`; None: a random one.
    """
    abstract = setup.abstract_state.variables
    if params is not None:
        del abstract["params"]

    def make(key: jax.Array) -> Variables:
        made = {"prompts": {}, **nn.meta.unbox(setup.model.init(key, initial_features()))}
        # What is not returned is not computed: no random backbone where one is given.
        return {name: _as(made[name], abstract[name]) for name in abstract}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with setup.in_place():
        made = jax.jit(make, out_shardings=shardings)(jax.random.key(setup.seed))
    return made if params is None else {"params": params, **made}


def initial_state(setup: TrainSetup, variables: Variables | None = None) -> TrainState:
    """A state at step 0.

    Args:
      setup: of the run.
      variables: placed as in `setup.abstract_state`; None: random ones.
    """
    variables = variables or initial_variables(setup)
    abstract = setup.abstract_state

    def begin(variables: Variables) -> tuple[jax.Array, PyTree]:
        opt_state = setup.optimizer.init(setup.trained(variables))
        return jnp.zeros((), jnp.int32), _as(opt_state, abstract.opt_state)

    placed = jax.tree.map(lambda leaf: leaf.sharding, (abstract.step, abstract.opt_state))
    with setup.in_place():
        step, opt_state = jax.jit(begin, out_shardings=placed)(variables)
    return TrainState(step, variables["params"], variables["prompts"], opt_state)


def variables_from_checkpoint(
    setup: TrainSetup, path: str, run: RunDescription, prompts: str = "none"
) -> Variables:
    """The backbone, and perhaps the prompts, of a checkpoint; other prompts are random.

    Args:
      setup: of the present run.
      path: MODEL_DIR, its `checkpoints` folder, or a step's folder.
      run: the present run; vocabularies must agree.
      prompts: one of `INITIAL_PROMPTS`: 'none' (random ones), 'all' of the checkpoint's, or
        'matching': those of equal name and shape. What the checkpoint has for one task goes to
        every task of a bank.

    Raises:
      CheckpointError: no such checkpoint, another size or vocabulary, damage; or 'all' of the
        prompts, and settings of theirs differ by which they would mean something else.
    """
    checkpoint = open_checkpoint(path)  # once: the other run may still be saving
    manifest, where = checkpoint.manifest, checkpoint.folder
    abstract, config = setup.abstract_state, setup.model.config
    checkpoint.check_vocabulary(run.vocabulary_fingerprint)
    params = checkpoint.restore(PARAMS, abstract.params, config)
    checkpoint.warn_of_a_better_step(path)
    logger.info("backbone from %s", where)
    computed = [line for line in differences(manifest, config) if line.split(":")[0] in _ARITHMETIC]
    if computed:
        logger.warning(
            "the backbone of %s was trained to compute otherwise (checkpoint -> model): %s",
            where,
            "; ".join(computed),
        )
    if prompts == "all":
        if changed := _other_meanings(manifest, config):
            raise CheckpointError(
                f"Start.prompts = 'all', but the prompts of {where} would mean something else here "
                f"(checkpoint -> model): {'; '.join(changed.values())}. Give the same settings, or "
                "take over those that 'matching' can"
            )
        restored = checkpoint.restore(PROMPTS, abstract.prompts, config)
        return {"params": params, "prompts": restored}
    variables = initial_variables(setup, params)
    if prompts == "matching":
        variables["prompts"] = _with_matching(checkpoint, variables["prompts"], setup)
    return variables


def _with_matching(checkpoint: Checkpoint, prompts: PyTree, setup: TrainSetup) -> PyTree:
    """What a task has in another size than the checkpoint stays as it is in `prompts`."""
    config, everything, manifest = setup.model.config, flatten(prompts), checkpoint.manifest
    changed = _other_meanings(manifest, config)
    if changed:
        logger.warning(
            "prompts that would mean something else here are not taken over (checkpoint -> model): "
            "%s",
            "; ".join(changed.values()),
        )
    present = {
        name: leaf for name, leaf in everything.items() if not any(part in name for part in changed)
    }
    whole, wanted = tasks_with_whole_slice(config), present
    if not same_task_sizes(manifest, config):
        saved = tasks_with_whole_slice(manifest.build_model_config())
        wanted = {
            name: leaf
            for name, leaf in present.items()
            if all(whole[name]) and all(saved.get(name, ()))
        }
    shared = checkpoint.restore_matching(PROMPTS, wanted)
    if config.prompts.num_tasks > 1:
        leaves = prompt_leaves(config)

        def shape_of_one(name: str) -> tuple[int, ...]:
            leaf = leaves[name]
            return tuple(1 if i == leaf.task_axis else n for i, n in enumerate(leaf.shape))

        of_one_task = {
            name: jax.ShapeDtypeStruct(
                shape_of_one(name), leaf.dtype, sharding=replicated(setup.mesh)
            )
            for name, leaf in present.items()
            if name not in shared
        }
        single = checkpoint.restore_matching(PROMPTS, of_one_task)
        for name, leaf in single.items():
            shape = [-1 if axis == TASKS else 1 for axis in leaves[name].axes]
            spread = functools.partial(jnp.where, jnp.asarray(whole[name]).reshape(shape))
            placed = jax.jit(spread, out_shardings=present[name].sharding)
            shared[name] = placed(leaf, present[name])
    new = [name for name in everything if name not in shared]
    logger.info("prompts taken over: %s; new: %s", sorted(shared), new)
    return unflatten({**everything, **shared}, prompts)


def _other_meanings(manifest: Manifest, config: ModelConfig) -> dict[str, str]:
    """Part of prompts' names -> setting by which equal tensors mean something else, and how.

    Nothing where the checkpoint does not tell, or one of both has none of these prompts.
    """
    try:
        saved = manifest.build_model_config().prompts
    except CheckpointError:
        return {}
    changed: dict[str, str] = {}
    for method in METHODS:
        both = method.used(saved) and method.used(config.prompts)
        for name in method.meanings if both else ():
            before, now = getattr(saved, name), getattr(config.prompts, name)
            if before != now:
                text = f"PromptConfig.{name}: {before} -> {now}"
                changed |= dict.fromkeys(method.groups, text)
    return changed


def _as(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), tree, like)
