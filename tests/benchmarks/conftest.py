"""Commands of benchmarks that are noted and not carried out; the made-up shop."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.data.conftest import write_shop

__all__ = ["bindings_of", "recorded", "write_shop"]

Call = tuple[str, ...]


def bindings_of(call: Call) -> dict[str, str]:
    """What `--gin.NAME=VALUE` arguments bind, without quotes."""
    pairs = (text.removeprefix("--gin.").split("=", 1) for text in call if "=" in text)
    return {name: value.strip("'") for name, value in pairs}


def recorded(
    made: list[Call], figures_of: Callable[[Call], dict[str, float]]
) -> Callable[..., None]:
    """What stands for `m6rec`: a training run makes its folder, an evaluation its figures."""

    def m6rec(*arguments: object) -> None:
        call = tuple(map(str, arguments))
        made.append(call)
        bound = bindings_of(call)
        if call[0] == "train":
            (Path(bound["MODEL_DIR"]) / "checkpoints").mkdir(parents=True, exist_ok=True)
        if call[0] == "eval":
            Path(bound["evaluate.output"]).write_text(json.dumps(figures_of(call)))

    return m6rec
