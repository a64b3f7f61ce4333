"""Compiled programs on disk, found again without tracing them.

JAX's own cache is asked with the program itself, which Python must first trace and lower: of the
start of a server these are most of the time. Here a program is asked for by what it is made from:
the function's name and the values that it is made for, the sources of this package, versions,
settings, the device, and the shapes of its arguments. A service of `small` warms up in 1.0 s by it,
in 9.6 s by JAX's cache alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import pickle
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import m6rec_jax
from m6rec_jax.checkpoints.manifest import library_versions
from m6rec_jax.data.store.manifest import fingerprint
from m6rec_jax.io.atomic import write_atomically

# Recorded when a program is read, as JAX does for its own cache.
LOADED_EVENT = "/m6rec/programs/loaded"
_lock = threading.Lock()
_warming = contextvars.ContextVar("warming", default=False)
log = logging.getLogger(__name__)
_folder: Path | None = None


def keep_programs(folder: Path | None) -> None:
    """Keeps what `KeptProgram` compiles from now on in a local folder; None: nothing is kept."""
    global _folder
    _folder = folder


@contextlib.contextmanager
def warming_up() -> Iterator[None]:
    """Within it programs are called for nothing but to have them compiled: nobody keeps results.

    One that is read from the folder has run before. Its first call computes nothing then, and
    returns zeros.
    """
    token = _warming.set(True)
    try:
        yield
    finally:
        _warming.reset(token)


class KeptProgram:
    """`jax.jit` of `function(*static, ...)` on the default device, read from the folder if there.

    Its first argument must have the same shapes in every call.

    Args:
      function: a function of a module; `static` are its first arguments, and the name of a program
        has what `repr` says of them.
      donate: the arguments after these whose memory the results may take.
    """

    def __init__(
        self, function: Callable[..., Any], static: Sequence[Any], donate: Sequence[int] = ()
    ) -> None:
        self._function, self._donate = functools.partial(function, *static), tuple(donate)
        self._described = f"{_named(function)} {[_named(value) for value in static]} {donate}"
        self._jitted = jax.jit(self._function, donate_argnums=self._donate)
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        if _folder is None:
            return self._jitted(*args)
        leaves, tree = jax.tree.flatten(args[1:])
        shapes = tree, tuple(map(jax.typeof, leaves))
        if shapes not in self._compiled:
            path = _folder / self._name(args)
            found = _read(path)
            self._compiled[shapes] = self._compile(path, args) if found is None else found
            # What is donated goes on living in the results, so such programs are always run.
            if found is not None and not self._donate and _warming.get():
                zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found.out_info)
                return jax.device_put(zeros)
        return self._compiled[shapes](*args)

    def _name(self, args: Sequence[Any]) -> str:
        leaves, tree = jax.tree.flatten((tuple(args), {}))
        types = [str(jax.typeof(leaf)) for leaf in leaves]
        return fingerprint(_environment(), gin.config_str(), f"{self._described} {tree} {types}")

    def _compile(self, path: Path, args: Sequence[Any]) -> jax.stages.Compiled:
        with from_source():
            # JAX gives equal functions the program that it has in memory, which may have been
            # read from its cache, too; a partial function is like no other.
            anew = jax.jit(functools.partial(self._function), donate_argnums=self._donate)
            made = anew.lower(*args).compile()
        try:
            program, *trees = serialize_executable.serialize(made)
            # Structures of custom nodes cannot be pickled, such nodes can.
            numbered = (jax.tree.unflatten(tree, range(tree.num_leaves)) for tree in trees)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, pickle.dumps((program, *numbered)))
        except (NotImplementedError, ValueError, OSError) as error:
            # JAX cannot write a program that takes closed-over arrays as arguments.
            log.warning("%s is not kept and is compiled anew: %s", path, error)
        return made


def _named(value: Any) -> str:
    """A function's name, which has no address in it; else what `repr` says."""
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


def _read(path: Path) -> jax.stages.Compiled | None:
    """A program; None where there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        program, *trees = pickle.loads(path.read_bytes())
        in_tree, out_tree = map(jax.tree.structure, trees)
        # Compiled for one device; by default it would be loaded for all of the host.
        found = serialize_executable.deserialize_and_load(
            program, in_tree, out_tree, execution_devices=jax.local_devices()[:1]
        )
    except Exception as error:  # whatever a damaged file may raise
        log.warning("%s cannot be read and is made again: %s", path, error)
        return None
    jax.monitoring.record_event(LOADED_EVENT)
    return found


@contextlib.contextmanager
def from_source() -> Iterator[None]:
    """Without JAX's own cache: what was read from it, written again lacks functions, and fails when
    it is run ("Function ... not found", jaxlib 0.10.2)."""
    with _lock:
        used = jax.config.values["jax_enable_compilation_cache"]
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            jax.config.update("jax_enable_compilation_cache", used)
            compilation_cache.reset_cache()


@functools.cache
def _environment() -> str:
    """All that a program depends on, but what it is asked for with."""
    sources = Path(m6rec_jax.__file__).parent
    settings = {k: v for k, v in jax.config.values.items() if "cache" not in k}
    flags = {k: v for k, v in os.environ.items() if k in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    device = jax.devices()[0]
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), cpu)
    described = (
        fingerprint(files=sorted(sources.rglob("*.py"))),
        *(sorted(library_versions().items()), platform.python_version()),
        *(sorted(settings.items()), sorted(flags.items()), os.cpu_count(), cpu),
        *(device.client.platform_version, device.device_kind, device.id),
    )
    return "\n".join(map(str, described))
