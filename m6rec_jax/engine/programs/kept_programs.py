"""Compiled programs on disk, found again without tracing them.

JAX's own cache is asked with the program itself, which Python must first trace and lower: of the
start of a server these are two thirds. Here a program is asked for by what it is made from: the
sources of this package, versions, settings, the device, the shapes of its arguments, and whatever
its function holds. Something too much in there costs a compilation; something too little would run
a wrong program. So everything that a function can reach counts, but for what classes list in
`not_traced`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import logging
import os
import pickle
import platform
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import m6rec_jax
from m6rec_jax.checkpoints.manifest import library_versions
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.hashing import hash_files, sha256

# Recorded when a program is read, as JAX does for its own cache.
LOADED_EVENT = "/m6rec/programs/loaded"
_SCALARS = (str, bytes, int, float, complex, bool, type(None), np.dtype, np.generic)
_lock = threading.Lock()
_warming = contextvars.ContextVar("warming", default=False)
log = logging.getLogger(__name__)
_programs: _Programs | None = None


def keep_programs(folder: Path | None, start: str = "") -> None:
    """Keeps what `Kept` compiles from now on in a folder; None: nothing is kept.

    Args:
      folder: local; made where it is missing.
      start: what this process is started for. Programs that the last such process ran are read at
        once, on a thread of their own, while the model is still being restored. They are known to
        run, so a first call of one within `warming_up` computes nothing and returns zeros.
    """
    global _programs
    _programs = None if folder is None else _Programs(folder, start)


@contextlib.contextmanager
def warming_up() -> Iterator[None]:
    """Within it programs are called for nothing but to have them compiled: nobody keeps results."""
    token = _warming.set(True)
    try:
        yield
    finally:
        _warming.reset(token)


def all_programs_run() -> None:
    """Says that this process has run all its programs, which the next one then reads at once."""
    if _programs is not None:
        _programs.write_list()


class _Programs:
    def __init__(self, folder: Path, start: str) -> None:
        self._folder = folder
        self._list = folder / f"{sha256(f'{_environment()}{start}')}.list"
        self._used = dict[str, None]()
        # Of a damaged list no name is a program's.
        listed = self._list.read_text(errors="replace") if self._list.exists() else ""
        names = listed.split()
        reader = ThreadPoolExecutor(1, "m6rec-programs")
        # Programs that the last start ran.
        self.ahead = {name: reader.submit(self._read, name) for name in names}
        reader.shutdown(wait=False)

    def find(self, name: str) -> jax.stages.Compiled | None:
        """The program of that name; None where there is none, or a damaged one."""
        self._used[name] = None
        found = self.ahead[name].result() if name in self.ahead else self._read(name)
        if found is not None:
            jax.monitoring.record_event(LOADED_EVENT)
        return found

    def _read(self, name: str) -> jax.stages.Compiled | None:
        path = self._folder / name
        if not path.exists():
            return None
        try:
            program, *trees = pickle.loads(path.read_bytes())
            in_tree, out_tree = map(jax.tree.structure, trees)
            # Compiled for one device; by default it would be loaded for all of the host.
            return serialize_executable.deserialize_and_load(
                program, in_tree, out_tree, execution_devices=jax.local_devices()[:1]
            )
        except Exception as error:  # whatever a damaged file may raise
            log.warning("%s cannot be read and is made again: %s", path, error)
            return None

    def write(self, name: str, made: jax.stages.Compiled) -> None:
        """Keeps a program, or warns that it cannot be kept."""
        try:
            program, *trees = serialize_executable.serialize(made)
            # Structures of custom nodes cannot be pickled, such nodes can.
            numbered = (jax.tree.unflatten(tree, range(tree.num_leaves)) for tree in trees)
            self._write(name, pickle.dumps((program, *numbered)))
        except (NotImplementedError, ValueError) as error:
            # JAX cannot write a program that takes closed-over arrays as arguments.
            log.warning("a program is not kept in %s and is compiled anew: %s", self._folder, error)

    def write_list(self) -> None:
        """Keeps the names of the programs that were used."""
        self.ahead = {}
        self._write(self._list.name, "\n".join(self._used).encode())

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / name, content)
        except OSError as error:
            log.warning("%s is not kept in %s: %s", name, self._folder, error)


class Kept:
    """`jax.jit(function)` on the default device, read from the folder where it is there.

    Its first argument must have the same shapes in every call.

    Args:
      function: of arrays.
      donate: the arguments whose memory the results may take.
    """

    not_traced = ("_jitted", "_compiled")

    def __init__(self, function: Callable[..., Any], donate: int | Sequence[int] = ()) -> None:
        self._function = function
        self._donate = (donate,) if isinstance(donate, int) else tuple(donate)
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        if _programs is None:
            return self._jitted(*args)
        leaves, tree = jax.tree.flatten(args[1:])
        shapes = tree, tuple(map(jax.typeof, leaves))
        if shapes not in self._compiled:
            name = self._name(args)
            self._compiled[shapes] = self._read_or_compile(_programs, name, args)
            # What is donated goes on living in the results, so such programs are always run.
            if name in _programs.ahead and not self._donate and _warming.get():
                results = self._compiled[shapes].out_info
                return jax.device_put(
                    jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), results)
                )
        return self._compiled[shapes](*args)

    def _name(self, args: Sequence[Any]) -> str:
        leaves, tree = jax.tree.flatten((tuple(args), {}))
        return sha256(
            f"{_environment()}\n{gin.config_str()}\n{self._donate}\n{tree}\n"
            f"{[str(jax.typeof(leaf)) for leaf in leaves]}\n{made_of(self._function)}"
        )

    def _read_or_compile(
        self, programs: _Programs, name: str, args: Sequence[Any]
    ) -> jax.stages.Compiled:
        found = programs.find(name)
        if found is None:
            with _from_source():
                # JAX gives equal functions the program that it has in memory, which may have been
                # read from its cache, too; a partial function is like no other.
                anew = jax.jit(functools.partial(self._function), donate_argnums=self._donate)
                found = anew.lower(*args).compile()
            programs.write(name, found)
        return found


@contextlib.contextmanager
def _from_source() -> Iterator[None]:
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
    return "\n".join(
        map(
            str,
            (
                hash_files(sorted(sources.rglob("*.py"))).hexdigest(),
                *(sorted(library_versions().items()), platform.python_version()),
                *(sorted(settings.items()), sorted(flags.items()), os.cpu_count(), cpu),
                *(device.client.platform_version, device.device_kind, device.id),
            ),
        )
    )


def made_of(function: Callable[..., Any]) -> str:
    """A hash of a function and of all values that it can reach."""
    digest, seen = hashlib.sha256(), dict[int, int]()
    held = list[Any]()  # so that no id is given twice

    def visit(value: Any) -> None:
        if isinstance(value, _SCALARS):
            token(value)
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            # Closed over, it may have become a constant of the program.
            token(value.shape, value.dtype, sha256(np.asarray(value).tobytes()))
        elif id(value) in seen:
            token(seen[id(value)])
        else:
            seen[id(value)] = len(seen)
            held.append(value)
            token(type(value).__qualname__)
            for part in parts(value):
                visit(part)
            token("end")

    def token(*values: Any) -> None:
        digest.update(f"{values!r}\n".encode())

    visit(function)
    return digest.hexdigest()


def parts(value: Any) -> Sequence[Any]:
    """What a value consists of."""
    if isinstance(value, type | types.ModuleType):
        return (value.__module__ if isinstance(value, type) else "", value.__name__)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        code = value.__code__
        where = (value.__module__, value.__qualname__, code.co_firstlineno)
        return (*where, value.__defaults__, value.__kwdefaults__, *cells)
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return value
    if hasattr(value, "fingerprint"):
        return (value.fingerprint,)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = list(getattr(value, "__dict__", {}))
    skipped = getattr(type(value), "not_traced", ())
    return [part for name in names if name not in skipped for part in (name, getattr(value, name))]
