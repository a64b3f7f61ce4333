"""Parameters of what gin configures here, read off the source: importing takes seconds."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path


@functools.cache
def parameters_of(name: str) -> list[str] | None:
    """Of a function or class that gin configures; None where the source alone does not tell."""
    found = [
        node
        for text in _sources()
        if re.search(rf"^(?:def|class) {re.escape(name)}\b", text, re.M)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if node.name == name and _configured(node)
    ]
    if len(found) != 1:
        return None
    (node,) = found
    if isinstance(node, ast.FunctionDef):
        return _arguments(node)
    for own in node.body:
        if isinstance(own, ast.FunctionDef) and own.name == "__init__":
            return _arguments(own)
    if node.bases:
        return None
    fields = [own.target for own in node.body if isinstance(own, ast.AnnAssign)]
    return [field.id for field in fields if isinstance(field, ast.Name)]


@functools.cache
def _sources() -> list[str]:
    texts = (path.read_text("utf-8") for path in Path(__file__).parent.rglob("*.py"))
    return [text for text in texts if "@gin.configurable" in text]


def _configured(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any("gin.configurable" in ast.unparse(own) for own in node.decorator_list)


def _arguments(function: ast.FunctionDef) -> list[str] | None:
    arguments = function.args
    if arguments.kwarg is not None:
        return None
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named if argument.arg != "self"]
