"""The Python of README.md runs, where its commands have made what it names."""

import re
from pathlib import Path

import pytest

from m6rec_jax.bank.export import add_prompts
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.text.records import Item
from tests.serving import served_films

PAGE = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# Columns and template of MovieLens; what the template needs, the README must give.
SPEC = DatasetSpec.load(Path(__file__).parents[1] / "tasks/movielens").to_dict()
ITEMS = [
    Item(str(n), {"title": item.attributes["title"], "genres": [item.attributes["genre"]]})
    for n, item in zip((50, 181, *range(10)), served_films.ITEMS, strict=True)
]


def test_readme_is_short() -> None:
    assert len(PAGE.splitlines()) <= 160


def test_python_of_the_readme(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.splitlines()) <= 20
    commands = re.sub(r"\\\n\s*", "", PAGE)
    added = re.findall(r"m6rec prompts add (\S+) --from (\S+) --name (\S+)", commands)
    [(run, bank, task, index)] = re.findall(
        r"m6rec index build --gin.MODEL_DIR=(\S+) --gin.BANK=(\S+) --gin.TASK=(\S+) "
        r"--output (\S+)",
        commands,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "cache"))
    served_films.write_data(tmp_path / "cache" / served_films.PREPARED, SPEC, ITEMS)
    served_films.copy_run(served / "run", Path(run), ["ctr"], SPEC)
    for folder, source, name in added:
        served_films.copy_run(served / "run", Path(source), [name], SPEC)
        add_prompts(folder, source, name=name)
    build_index(index, run, bank=bank, task=task, progress=False)
    capsys.readouterr()
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    # The first line printed is the comment beside it.
    printed = capsys.readouterr().out.splitlines()
    assert f"# {printed[0]}" in code
    assert len(printed) == 1 + 2 + 5
    assert [line.split(maxsplit=1)[1] for line in printed[3:]] == [
        next(str(i.attributes["title"]) for i in ITEMS if i.id == line.split()[0])
        for line in printed[3:]
    ]
    assert found["vectors"].shape[0] == len(found["ids"]) == len(ITEMS)
