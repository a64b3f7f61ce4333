"""What the pages name exists: files, gin files and settings. Links are checked by `make docs`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "tasks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = [*(ROOT / "m6rec_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
GIN_FILES = {path.name for path in (ROOT / "gin_configs").rglob("*.gin")}
FOLDERS = "m6rec_jax|gin_configs|tests|benchmarks|tpu_scripts"
# Examples of files and modules of a reader's own.
OWN = {"corner_shop", "my_", "NAME", "foundation.gin", "train.gin", "tune.gin", "data.gin"}


def known_settings() -> dict[str, set[str]]:
    """Functions and classes of the code by name: their arguments and fields, inherited ones too."""
    found: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = (*node.args.args, *node.args.kwonlyargs)
                found.setdefault(node.name, set()).update(a.arg for a in arguments)
            elif isinstance(node, ast.ClassDef):
                names = found.setdefault(node.name, set())
                parents = [ast.unparse(base).partition("[")[0] for base in node.bases]
                bases[node.name] = [parent.split(".")[-1] for parent in parents]
                for part in node.body:
                    if isinstance(part, ast.AnnAssign):
                        names.add(ast.unparse(part.target))
                    elif isinstance(part, ast.FunctionDef):
                        names.add(part.name)
                        arguments = (*part.args.args, *part.args.kwonlyargs)
                        names.update(a.arg for a in arguments if part.name == "__init__")
    for name in ("PromptConfig", "BankCapacity"):  # made of the methods' `Settings`
        found[name] |= found["Settings"]
    for name, parents in bases.items():
        for parent in parents:
            found[name] |= found.get(parent, set())
    return found


KNOWN = known_settings()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_and_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w/-]+\.(?:py|gin|sh|json|md)\b", text):
        assert (ROOT / path).exists() or any(own in path for own in OWN), path
    for name in re.findall(r"`(\w+\.gin)`", text):
        assert name in GIN_FILES or name in OWN, name
    for owner, name in re.findall(r"`([A-Z]\w+)\.([a-z]\w+)\b", text):
        if owner in KNOWN:
            assert name in KNOWN[owner], f"{owner}.{name}"
    for owner, name in re.findall(r"(?:^|--gin\.)(\w+)\.(\w+)(?: = |=)", text, re.MULTILINE):
        # Under t5x `train` is another one.
        assert name in KNOWN.get(owner, ()) or page.name == "t5x.md", f"{owner}.{name}"
