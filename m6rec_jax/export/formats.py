"""What `m6rec export` can write, and what keeps a format from being written with what is installed.

`benchmarks/export_size_speed.py` tries all of them.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess

# The modules that write them: `write(folder, asked)`, and `CHECK`, a script of the folder, which
# Python runs, or the module's `INTERPRETER`. Converters take seconds to import, or are extras.
MODULES = {
    "stablehlo": "stablehlo",
    "saved_model": "saved_model",
    "litert": "litert",
    "web": "web_page",
}
FORMATS = tuple(MODULES)
# Packages that formats need, and the extras that bring them.
_PACKAGES = {
    "saved_model": ("tensorflow_serving", "saved-model"),
    "litert": ("ai_edge_quantizer", "litert"),
    "web": ("ai_edge_quantizer", "litert"),
}
# The oldest one that has what the page's check uses of it.
_NODE = 20


def what_is_missing(format_: str) -> str | None:
    """What a format needs and has not got here, and how to get it; None: it works."""
    if format_ in _PACKAGES:
        package, extra = _PACKAGES[format_]
        if importlib.util.find_spec(package) is None:
            return f"needs the package {package}: pip install 'm6rec_jax[{extra}]'"
    if format_ == "web" and (found := _node_version()) < _NODE:
        there = f", not {found}" if found else ""
        return f"checks its export with Node.js ({_NODE} or newer{there}): install it"
    return None


def _node_version() -> int:
    """The first number of it; 0 where there is no Node.js."""
    try:
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.match(r"v(\d+)\.", done.stdout)
    return int(found[1]) if found else 0
