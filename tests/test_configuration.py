"""Gin files: where they are found, what they set, and what every mistake is answered with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import pytest

from m6rec_jax import configuration
from m6rec_jax.config_file import changed_settings, write_config
from m6rec_jax.configuration import bound, macro, parse_config
from m6rec_jax.errors import ConfigError


@gin.configurable(module="tests_configuration")
class ToyModel:
    def __init__(self, width: int = 3, depth: int = 1) -> None:
        self.width, self.depth = width, depth


@gin.configurable(module="tests_configuration")
def toy_run(
    steps: int,
    rate: float = 0.1,
    model: Any = None,
    folder: str = "",
    data: Any = None,
) -> dict[str, Any]:
    return {"steps": steps, "rate": rate, "model": model, "folder": folder, "data": data}


@gin.configurable(module="tests_configuration")
def toy_anything(**settings: Any) -> dict[str, Any]:
    return settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory, and no configuration left over."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gin.clear_config()


@pytest.fixture
def shipped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the installed package's folder."""
    root = tmp_path_factory.mktemp("site")
    (root / "gin_configs" / "models").mkdir(parents=True)
    (root / "gin_configs" / "models" / "mini.gin").write_text("ToyModel.width = 7\n")
    monkeypatch.setattr(configuration, "shipped_root", lambda: root)
    return root


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def error(files: list[str] | None = None, bindings: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(files or [], bindings or [])
    return str(caught.value)


RUN = """
include 'gin_configs/models/mini.gin'
import math

TRAIN_STEPS = %gin.REQUIRED
MODEL = @ToyModel()
toy_run:
  steps = %TRAIN_STEPS
  model = %MODEL
"""


# --- what is read -----------------------------------------------------------------------------


def test_files_includes_and_bindings(shipped: Path) -> None:
    write("run.gin", RUN)
    parse_config(["run.gin"], ["TRAIN_STEPS=20", "--gin.ToyModel.depth = 4"])
    result = toy_run()
    assert result["steps"] == 20
    assert (result["model"].width, result["model"].depth) == (7, 4)


def test_current_directory_comes_before_the_shipped_files(shipped: Path) -> None:
    parse_config(["gin_configs/models/mini.gin"])
    assert ToyModel().width == 7
    write("gin_configs/models/mini.gin", "ToyModel.width = 8\n")
    parse_config(["gin_configs/models/mini.gin"])
    assert ToyModel().width == 8


def test_each_call_starts_anew(shipped: Path) -> None:
    parse_config([], ["ToyModel.width=9"])
    parse_config([])
    assert ToyModel().width == 3


def test_later_files_win() -> None:
    write("a.gin", "ToyModel.width = 1\nToyModel.depth = 1\n")
    write("b.gin", "\ufeffToyModel.width = 2\n")  # as editors on Windows begin a file
    parse_config(["a.gin", "b.gin"])
    assert (ToyModel().width, ToyModel().depth) == (2, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((name, name) for name in ("3", "True", "2024-05-01/run", "run (2)", "Übung", "a,b")),
        ("runs/a-1", "runs/a-1"),
        ("/tmp/run.1", "/tmp/run.1"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("~/run", str(Path("~/run").expanduser())),
        ("'~/run'", str(Path("~/run").expanduser())),
        ("movielens_ctr", "movielens_ctr"),
        ("runs/my run", "runs/my run"),
        ("it's", "it's"),
        ("'quoted text'", "quoted text"),
        ('"quoted, too"', "quoted, too"),
        ("None", None),
        ("%TRAINABLE", "all"),
    ],
)
def test_texts_on_the_command_line(text: str, value: str | None) -> None:
    """A path or name may go without the quotes that a shell makes so tedious."""
    names = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH")
    parse_config([], ["TRAINABLE=all", *(f"--gin.{name}={text}" for name in names)])
    for name in names:
        assert macro(name) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("all", "all"),
        ("None", None),
        ("True", True),
        ("false", False),
        ("1e-3", 1e-3),
        ("{'inputs': 512, 'targets': 64}", {"inputs": 512, "targets": 64}),
    ],
)
def test_values_on_the_command_line(text: str, value: Any) -> None:
    parse_config([], [f"--gin.TRAINABLE={text}"])
    assert macro("TRAINABLE") == value


def test_macros() -> None:
    texts = "MODEL_DIR = '~/run'\ntoy_run.folder = '~/other'\n"
    write("run.gin", f"MODEL = @ToyModel()\nDROPOUT_RATE = 0.1\nOTHER = %DROPOUT_RATE\n{texts}")
    parse_config(["run.gin"])
    assert isinstance(macro("MODEL"), ToyModel)
    assert macro("OTHER") == 0.1
    assert macro("BATCH_SIZE", 8) == 8
    assert macro("MODEL_DIR") == str(Path("~/run").expanduser())
    assert bound("toy_run.folder") == "~/other", "it need not be a folder"


def test_bound_parameters() -> None:
    """Read without calling anything; whether by a macro, a value, or not at all."""
    name = write("bound.gin", "A_RATE = 0.1\ntoy_run.rate = %A_RATE\n")
    parse_config([name], ["toy_run.steps=7"])
    assert bound("toy_run.rate") == 0.1
    assert bound("toy_run.steps") == 7
    assert bound("toy_run.folder", "unset") == "unset"
    assert bound("no_such_function.rate") is None


def test_any_parameter_of_a_function_that_takes_any() -> None:
    parse_config([], ["toy_anything.whatever=1"])
    assert toy_anything() == {"whatever": 1}


def test_written_config_can_be_read_again(shipped: Path, tmp_path: Path) -> None:
    write("run.gin", RUN)
    parse_config(["run.gin"], ["TRAIN_STEPS=20"])
    write_config(tmp_path / "out")
    text = (tmp_path / "out" / "config.gin").read_text()
    assert "ToyModel.width = 7" in text
    assert "import math" in text
    before = toy_run()
    parse_config(["out/config.gin"])
    again = toy_run()
    assert again["model"].width == 7
    assert {**again, "model": None} == {**before, "model": None}
    parse_config(["out/config.gin"], ["ToyModel.width=8"])
    assert toy_run()["model"].width == 8


def test_a_macro_that_nothing_uses() -> None:
    """One of a file may be for others; one of the command line is a mistake."""
    idle, used = write("idle.gin", "LORA_RANK = 4\n"), write("used.gin", "toy_run.rate = %R\n")
    parse_config([idle])
    assert "nothing uses a macro 'LORA_RANK'" in error([idle], ["LORA_RANK=8"])
    parse_config([used], ["R=2.0", "MODEL_DIR='x'"])  # commands read MODEL_DIR


def test_changed_settings(shipped: Path, tmp_path: Path) -> None:
    write("run.gin", RUN)
    parse_config(["run.gin"], ["TRAIN_STEPS=20"])
    toy_run()
    assert changed_settings(tmp_path / "out") == [], "there is none yet"
    write_config(tmp_path / "out")
    assert changed_settings(tmp_path / "out") == []
    again = ["TRAIN_STEPS=30", "MODEL_DIR=elsewhere", "ToyModel.width=8", "toy_run.folder=new"]
    parse_config(["run.gin"], [*again, "toy_anything.whatever=1"])
    changed = changed_settings(tmp_path / "out")
    assert "TRAIN_STEPS: 20 -> 30" in changed
    assert "ToyModel.width: 7 -> 8" in changed
    assert not any("MODEL_DIR" in line or "toy_anything" in line for line in changed)


# --- mistakes ---------------------------------------------------------------------------------


def test_unknown_file(shipped: Path, folder: Path) -> None:
    message = error(["gin_configs/models/minni.gin"])
    assert "no gin file 'gin_configs/models/minni.gin'" in message
    assert "did you mean 'gin_configs/models/mini.gin'?" in message
    for place in (folder, shipped):
        assert str(place) in message, "the places searched"


@pytest.mark.parametrize(
    ("text", "start", "parts"),
    [
        ("# a comment\n\ninclude 'nowhere.gin'\n", "run.gin:3: no gin file 'nowhere.gin'", ()),
        (
            "\nToyModle.width = 3\n",
            "run.gin:2: nothing configurable is called 'ToyModle'",
            ("did you mean 'ToyModel'?", "import that.module"),
        ),
        (
            "toy_rum:\n  steps = 3\n",
            "run.gin:2: nothing configurable is called 'toy_rum'",
            (),
        ),
        (
            "toy_run:\n  steps = 3\n  model = @ToyMode()\n",
            "run.gin:3:",
            ("'ToyMode' (did you mean 'ToyModel'?)",),
        ),
        (
            "ToyModel.width = 3\nToyModel.widht = 4\n",
            "run.gin:2: 'ToyModel' has no parameter 'widht'",
            ("did you mean 'width'?", "Its parameters: width, depth"),
        ),
        (
            "STEPS = 3\ntoy_run.steps = %STEP\n",
            "run.gin:2: macro '%STEP' is not defined (did you mean 'STEPS'?)",
            ("--gin.STEP=VALUE",),
        ),
        (
            "toy_run.data = {'a': [1, (%GONE, 2)]}\n",
            "run.gin:1: macro '%GONE' is not defined",
            (),
        ),
        (
            "TRAIN_STEPS = 5\nTRIAN_STEPS = 3\ntoy_run.steps = %TRAIN_STEPS\n",
            "run.gin:2: nothing uses a macro 'TRIAN_STEPS' (did you mean 'TRAIN_STEPS'?)",
            (),
        ),
        ("import tasks_of_mine.films\n", "run.gin:1:", ("'tasks_of_mine'",)),
        ("from __gin__ import dynamic_registration\n", "run.gin:1", ("python -m t5x.train",)),
        ("ToyModel.width = 3\nToyModel.depth == 4\n", "run.gin:2", ("not valid gin",)),
        ("\n\nToyModel width = 3\n", "run.gin:3", ("not valid gin",)),
        ("ToyModel.width = $\n", "run.gin:1", ("not valid gin",)),
        ("toy_run.data = [1,\n2\n", "run.gin:", ("not valid gin",)),
        ("toy_run.data = 'open\n", "run.gin:1", ("not valid gin",)),
        ("include mini\n", "run.gin:1", ("not valid gin",)),
    ],
)
def test_mistakes_in_a_file_name_the_line(text: str, start: str, parts: tuple[str, ...]) -> None:
    write("run.gin", text)
    message = error(["run.gin"])
    assert message.startswith(start)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "toy_run.step=3",
            "--gin.toy_run.step: 'toy_run' has no parameter 'step' (did you mean 'steps'?)",
        ),
        (
            "TRAIN_STEP=100",
            "--gin.TRAIN_STEP: nothing uses a macro 'TRAIN_STEP' (did you mean 'TRAIN_STEPS'?)",
        ),
        ("TRAIN_STEPS", "expected --gin.NAME=VALUE"),
        ("--gin.=3", "expected --gin.NAME=VALUE"),
        ("TRAIN_STEPS=", "expected --gin.NAME=VALUE"),
        ("TRAIN_STEPS=%TRAIN_STEPS", "--gin.TRAIN_STEPS: macro 'TRAIN_STEPS' refers to itself"),
    ],
)
def test_mistakes_on_the_command_line(binding: str, message: str) -> None:
    assert message in error([], [binding])


def test_required_macros_are_all_named() -> None:
    write("run.gin", "MODEL_DIR = %gin.REQUIRED\nTRAIN_STEPS = %gin.REQUIRED\nBATCH_SIZE = 2\n")
    message = error(["run.gin"])
    assert "--gin.MODEL_DIR=VALUE   (folder of checkpoints" in message
    assert "--gin.TRAIN_STEPS=VALUE" in message
    assert "BATCH_SIZE" not in message
    parse_config(["run.gin"], ["MODEL_DIR=a", "TRAIN_STEPS=1"])
    with pytest.raises(ConfigError, match=r"--gin.MODEL=VALUE"):
        macro("MODEL")


def test_files_that_include_each_other() -> None:
    write("a.gin", "include 'b.gin'\n")
    write("b.gin", "include 'a.gin'\n")
    assert "in a circle: " in error(["a.gin"])


def test_not_text() -> None:
    Path("run.gin").write_bytes(b"\xff\xfe\x00")
    assert "run.gin: cannot be read" in error(["run.gin"])


def test_every_shipped_file_is_read() -> None:
    """With what it leaves open, on top of a model, a tuning method and a run."""
    root = Path(configuration.__file__).parents[1] / "gin_configs"
    base = [
        f"gin_configs/{name}.gin"
        for name in ("models/mini", "tuning/option_adapter", "recipes/scoring")
    ]
    folders = [f"{name} = 'a'" for name in ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH")]
    given = [*folders, "MIXTURE_OR_TASK_NAME = 'b'", "TASK_FEATURE_LENGTHS = {}"]
    given += ["TRAIN_STEPS = 1000", "NUM_OPTIONS = 2"]
    own = ("DATASET", "TEACHER", "PRUNING_END")
    for path in sorted(root.rglob("*.gin")):
        if path.parent.name != "t5x":  # whose files include t5x's own
            file = f"gin_configs/{path.relative_to(root)}"
            used = configuration.read_config([file]).uses
            configuration.check_config(
                [*base, file], [*given, *(f"{name} = 'c'" for name in own if name in used)]
            )
