"""The first state of a run: random, or with another run's weights (INITIAL_CHECKPOINT_PATH)."""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from m6rec_jax.checkpoints.location import StepLocation, absolute, locate, read_manifest
from m6rec_jax.checkpoints.manifest import (
    Manifest,
    RunDescription,
    check_task_sizes,
    check_vocabulary,
    differences,
    same_task_sizes,
    warn_of_a_better_step,
)
from m6rec_jax.checkpoints.restore import PARAMS, PROMPTS, restore_item, restore_matching
from m6rec_jax.checkpoints.trees import PyTree, flatten, unflatten
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.layout import TASKS, prompt_leaves, tasks_with_whole_slice
from m6rec_jax.model.m6rec import M6Rec, initial_features
from m6rec_jax.model.tuning import METHODS
from m6rec_jax.sharding import LogicalRules, axis_rules, replicated
from m6rec_jax.training.train_state import TrainState, trainable_groups

INITIAL_PROMPTS = ("none", "all", "matching")
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


def initial_state(
    model: M6Rec,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    rules: LogicalRules,
    *,
    trainable: str,
    seed: int,
    params: PyTree | None = None,
) -> TrainState:
    """A state at step 0, computed where it will live. The mesh does not change its values.

    Args:
      abstract: of `abstract_state`.
      params: a backbone, placed as in `abstract`; None: a random one.
    """

    def make(key: jax.Array) -> tuple[PyTree, PyTree]:
        variables = dict(nn.meta.unbox(model.init(key, initial_features())))
        prompts = _as(variables.get("prompts", {}), abstract.prompts)
        # What is not returned is not computed: no random backbone where one is given.
        return (_as(variables["params"], abstract.params) if params is None else {}), prompts

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.set_mesh(mesh), axis_rules(rules):
        shardings = (placed.params if params is None else {}, placed.prompts)
        made, prompts = jax.jit(make, out_shardings=shardings)(jax.random.key(seed))
        step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=placed.step)()
    params = made if params is None else params
    state = TrainState(step=step, params=params, prompts=prompts, opt_state=None)
    return with_optimizer_state(state, optimizer, abstract, mesh, rules, trainable=trainable)


def with_optimizer_state(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    rules: LogicalRules,
    *,
    trainable: str,
) -> TrainState:
    """The state with what the optimizer begins with; arguments as of `initial_state`."""

    def begin(params: PyTree, prompts: PyTree) -> PyTree:
        groups = trainable_groups({"params": params, "prompts": prompts}, trainable)
        return _as(optimizer.init(groups), abstract.opt_state)

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
    with jax.set_mesh(mesh), axis_rules(rules):
        made = jax.jit(begin, out_shardings=placed)(state.params, state.prompts)
    return state.replace(opt_state=made)


def check_prompts_of_checkpoint(choice: str) -> None:
    """Raises ConfigError for a choice of `Start.prompts` that there is not."""
    if choice not in INITIAL_PROMPTS:
        raise ConfigError(
            f"Start.prompts = {choice!r} is not one of {', '.join(INITIAL_PROMPTS)}"
            f"{did_you_mean(choice, INITIAL_PROMPTS)}"
        )


def state_from_checkpoint(
    model: M6Rec,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    rules: LogicalRules,
    *,
    trainable: str,
    seed: int,
    path: str,
    run: RunDescription,
    initial_prompts: str = "none",
) -> TrainState:
    """A state at step 0 with the backbone, and perhaps the prompts, of a checkpoint.

    Args:
      path: MODEL_DIR, its `checkpoints` folder, or a step's folder.
      run: the present run; vocabularies must agree.
      initial_prompts: 'none' (random ones), 'all' of the checkpoint's, or 'matching': those of
        equal name and shape. What the checkpoint has for one task goes to every task of a bank.

    Raises:
      CheckpointError: no such checkpoint, another size or vocabulary, damage; or 'all' of the
        prompts, and settings of theirs differ by which they would mean something else.
    """
    location = locate(path)  # once: the other run may still be saving
    manifest, where = read_manifest(location), str(location.folder)
    check_vocabulary(manifest, run.vocabulary_fingerprint, where)
    params = restore_item(location, manifest, PARAMS, abstract.params, run.model_config)
    if location.folder != absolute(path):
        warn_of_a_better_step(location.step, manifest)
    logger.info("backbone from %s", where)
    computed = [
        line for line in differences(manifest, model.config) if line.split(":")[0] in _ARITHMETIC
    ]
    if computed:
        logger.warning(
            "the backbone of %s was trained to compute otherwise (checkpoint -> model): %s",
            where,
            "; ".join(computed),
        )
    state = initial_state(
        model, optimizer, abstract, mesh, rules, trainable=trainable, seed=seed, params=params
    )
    if initial_prompts == "all":
        if changed := _other_meanings(manifest, model.config):
            raise CheckpointError(
                f"Start.prompts = 'all', but the prompts of {where} would mean something else here "
                f"(checkpoint -> model): {'; '.join(changed.values())}. Give the same settings, or "
                "take over those that 'matching' can"
            )
        prompts = restore_item(location, manifest, PROMPTS, abstract.prompts, run.model_config)
        check_task_sizes(manifest, run.model_config, where)
        return state.replace(prompts=prompts)
    if initial_prompts == "matching":
        prompts = _with_matching(location, manifest, state.prompts, model.config, mesh)
        return state.replace(prompts=prompts)
    return state


def _with_matching(
    location: StepLocation, manifest: Manifest, prompts: PyTree, config: ModelConfig, mesh: Mesh
) -> PyTree:
    """What a task has in another size than the checkpoint stays as it is in `prompts`."""
    everything = flatten(prompts)
    changed = _other_meanings(manifest, config)
    own = {
        name: leaf for name, leaf in everything.items() if not any(part in name for part in changed)
    }
    if changed:
        logger.warning(
            "prompts that would mean something else here are not taken over (checkpoint -> model): "
            "%s",
            "; ".join(changed.values()),
        )
    whole, wanted = tasks_with_whole_slice(config), own
    if not same_task_sizes(manifest, config):
        saved = tasks_with_whole_slice(manifest.build_model_config())
        wanted = {
            name: leaf
            for name, leaf in own.items()
            if all(whole[name]) and all(saved.get(name, ()))
        }
    shared = restore_matching(location, manifest, PROMPTS, wanted)
    if config.prompts.num_tasks > 1:
        leaves = prompt_leaves(config)
        of_one_task = {
            name: jax.ShapeDtypeStruct(
                tuple(
                    1 if axis == TASKS else length
                    for axis, length in zip(leaves[name].axes, leaves[name].shape, strict=True)
                ),
                leaf.dtype,
                sharding=replicated(mesh),
            )
            for name, leaf in own.items()
            if name not in shared
        }
        single = restore_matching(location, manifest, PROMPTS, of_one_task)
        for name, leaf in single.items():
            shape = [-1 if axis == TASKS else 1 for axis in leaves[name].axes]
            taking = jnp.asarray(whole[name]).reshape(shape)
            spread = functools.partial(jnp.where, taking)
            shared[name] = jax.jit(spread, out_shardings=own[name].sharding)(leaf, own[name])
    others = [name for name in everything if name not in shared]
    logger.info("prompts taken over: %s; new: %s", sorted(shared), others)
    return unflatten({**everything, **shared}, prompts)


def _other_meanings(manifest: Manifest, config: ModelConfig) -> dict[str, str]:
    """Part of prompts' names -> setting by which equal tensors mean something else, and how.

    Nothing where the checkpoint does not tell, or one of both has none of these prompts.
    """
    try:
        saved = manifest.build_model_config().prompts
    except CheckpointError:
        return {}
    own = config.prompts
    changed: dict[str, str] = {}
    for method in METHODS:
        for name in method.meanings if method.used(saved) and method.used(own) else ():
            before, now = getattr(saved, name), getattr(own, name)
            if before != now:
                text = f"PromptConfig.{name}: {before} -> {now}"
                changed |= dict.fromkeys(method.groups, text)
    return changed


def _as(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), tree, like)
