"""A layer imports only layers below it (docs/architecture.md), and light libraries only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "m6rec_jax"

# Lowest first. A folder may import itself and the folders before it.
LAYERS = [
    "io",
    "pages",
    "text",
    "metrics",
    "dialogue",
    "data",
    "requests",
    "model",
    "sharding",
    "checkpoints",
    "objectives",
    "engine",
    "jobs",
    "bank",
    "serving",
    "pipeline",
    "evaluation",
    "training",
    "compilation",
    "compression",
    "export",
    "server",
    "t5x_bridge",
    # From here on modules, and the commands: the public face and the command line.
    "convert",
    "doctor",
    "recommender",
    "run_report",
    "quickstart",
    "demo",
    "edge_demo",
    "commands",
    "cli",
]
# Modules below the folders: errors, configuration (it knows only gin) and how processes start.
BELOW_ALL = {
    "errors",
    "configuration",
    "named_configs",
    "config_file",
    "quiet_start",
}

HEAVY = {
    *("jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "seqio", "clu"),
    "t5x",  # in t5x_bridge alone
    "ray",  # in io/workers.py and server/ray_engine.py alone
}
# What each layer may import of the heavy libraries (anywhere in the file, lazily or not).
MAY_IMPORT = {
    "io": {"ray"},
    "pages": set(),
    "text": set(),
    "data": {"tensorflow_datasets", "tensorflow"},
    "metrics": set(),
    "dialogue": set(),
    "model": {"jax", "flax"},
    "sharding": {"jax", "flax"},
    "checkpoints": {"jax", "flax", "orbax"},
    "objectives": {"jax", "flax"},
    "requests": set(),
    "engine": {"jax", "flax"},
    "jobs": {"jax"},
    "bank": {"jax", "flax"},
    "pipeline": {"tensorflow", "seqio", "tensorflow_datasets"},
    "evaluation": {"jax", "flax"},
    "training": HEAVY - {"seqio", "t5x", "ray"},
    "compilation": {"jax", "optax"},
    "compression": HEAVY - {"t5x", "ray"},
    "export": HEAVY - {"t5x", "ray"},
    "serving": {"jax"},
    "server": {"jax", "ray"},
    "commands": {"jax"},
}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it absolute"
            assert node.module is not None
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_files() -> list[tuple[str, Path]]:
    return [
        (layer, path)
        for layer in LAYERS
        for path in [*PACKAGE.glob(f"{layer}.py"), *sorted((PACKAGE / layer).rglob("*.py"))]
    ]


def test_every_folder_and_module_has_a_layer() -> None:
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    found |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert found == set(LAYERS) | BELOW_ALL


@pytest.mark.parametrize(
    ("layer", "path"), layer_files(), ids=lambda value: value if isinstance(value, str) else None
)
def test_imports_only_lower_layers(layer: str, path: Path) -> None:
    allowed = set(LAYERS[: LAYERS.index(layer) + 1]) | BELOW_ALL
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "m6rec_jax" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{path.relative_to(ROOT)} ({layer}) imports {name}"
        if layer in MAY_IMPORT and parts[0] in HEAVY:
            assert parts[0] in MAY_IMPORT[layer], f"{path.relative_to(ROOT)} imports {name}"


# Neither the server nor the command line must pay for tensorflow (seconds and gigabytes).
NEVER = {
    *("tensorflow", "tensorflow_datasets", "seqio", "clu", "ray", "matplotlib"),
    *("sacrebleu", "rouge_score", "nltk"),
}
OF_MODELS = {"jax", "flax", "etils.epath"}
# Modules, and what else is not there when they are imported, in this order.
LIGHT = [
    ("m6rec_jax", OF_MODELS),
    ("m6rec_jax.configuration", OF_MODELS),
    ("m6rec_jax.metrics.generation", OF_MODELS),
    ("m6rec_jax.edge_demo", OF_MODELS),
    ("m6rec_jax.cli", set()),
    ("m6rec_jax.evaluation.report", set()),
    ("m6rec_jax.engine.candidates.scoring", set()),
    ("m6rec_jax.engine.decoding.generation", set()),
    ("m6rec_jax.bank.loading", set()),
    ("m6rec_jax.serving.batch_inference", set()),
    ("m6rec_jax.serving.build_index", set()),
    ("m6rec_jax.server.launch", set()),
    ("m6rec_jax.server.ray_engine", set()),
    ("m6rec_jax.recommender", set()),  # with `m6rec_jax.load`
]


def test_import_is_light() -> None:
    code = (
        "import importlib, sys\n"
        f"for module, absent in {LIGHT}:\n"
        "    importlib.import_module(module)\n"
        f"    print(*(f'{{m}} with {{module}}' for m in {NEVER} | absent if m in sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not out.stdout.strip()
