"""A bank on disk: tasks come and go whole, belong to one model, and are found out when damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.bank import folder as folders
from m6rec_jax.bank.export import add_prompts
from m6rec_jax.bank.folder import BankFolder, TaskPrompts, read_prompts
from m6rec_jax.bank.manifest import method_of, parse_prompt_manifest
from m6rec_jax.bank.report import inspect_task, read_manifests, tasks_table
from m6rec_jax.cli import main
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.model import PromptConfig
from tests.bank.conftest import Backbone, make_prompts

NAMES = ["ctr", "genres", "near", "next", "probe", "stars", "titles"]


@pytest.fixture
def bank(bank_path: Path, tmp_path: Path) -> BankFolder:
    return BankFolder(shutil.copytree(bank_path, tmp_path / "bank"))


def list_tasks(bank: BankFolder) -> str:
    return tasks_table(read_manifests(bank), str(bank.path))


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_read_as_written(bank: BankFolder, all_prompts: dict[str, TaskPrompts]) -> None:
    assert bank.names() == NAMES
    for name in NAMES:
        found, written = bank.read(name), all_prompts[name]
        assert found.manifest == written.manifest
        assert found.dataset_spec == written.dataset_spec
        assert set(found.tensors) == set(written.tensors)
        for tensor, values in written.tensors.items():
            np.testing.assert_array_equal(found.tensors[tensor], values)


def test_remove_and_add_again(bank: BankFolder, all_prompts: dict[str, TaskPrompts]) -> None:
    before = files(bank.path)
    others = {name: content for name, content in before.items() if not name.startswith("ctr/")}
    bank.remove("ctr")
    assert files(bank.path) == others
    with pytest.raises(CheckpointError, match="has no task 'ctr'; its tasks: genres, near"):
        bank.remove("ctr")
    bank.add(all_prompts["ctr"])
    after = files(bank.path)
    assert {n: c for n, c in after.items() if not n.startswith("ctr/")} == others
    with pytest.raises(ConfigError, match=r"a task 'ctr' already; remove it first .*--name"):
        bank.add(all_prompts["ctr"])
    assert files(bank.path) == after


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_add_leaves_nothing(
    bank: BankFolder,
    all_prompts: dict[str, TaskPrompts],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    bank.remove("probe")
    before = files(bank.path)

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(folders, "_write_json", fail)  # after the tensors
        expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            bank.add(all_prompts["probe"])
    assert files(bank.path) == before


def test_prompts_of_another_model(
    bank: BankFolder, backbone: Backbone, all_prompts: dict[str, TaskPrompts]
) -> None:
    before = files(bank.path)
    manifest = all_prompts["ctr"].manifest
    stranger = backbone._replace(params={**backbone.params, "encoder": backbone.params["decoder"]})
    late = backbone._replace(config=backbone.config.replace(late_layers_start=0))
    arguments = (manifest.prompts, manifest.settings, 0)
    with pytest.raises(CheckpointError, match=r"another backbone \(fingerprint .* than the bank"):
        bank.add(make_prompts(stranger, "new", *arguments))
    with pytest.raises(CheckpointError, match=r"late_layers_start = 0, but the bank .* has 1"):
        bank.add(make_prompts(late, "new", *arguments))
    words = dataclasses.replace(manifest, task="new", vocabulary_fingerprint="0123")
    with pytest.raises(CheckpointError, match=r"another vocabulary \(fingerprint 0123…\)"):
        bank.add(dataclasses.replace(all_prompts["ctr"], manifest=words))
    relu = dataclasses.replace(manifest.prompts, adapter_activation="relu")
    with pytest.raises(CheckpointError, match="adapter_activation = 'relu'"):
        bank.add(make_prompts(backbone, "new", relu, manifest.settings, 0))
    for name in ("", "a/b", "..", ".hidden", "a.b", "ä", "lock"):
        named = dataclasses.replace(manifest, task=name)
        with pytest.raises(ConfigError, match="is no name for a task"):
            bank.add(dataclasses.replace(all_prompts["ctr"], manifest=named))
    # How the backbone is computed is no matter.
    other = backbone._replace(config=backbone.config.replace(remat="full", dropout_rate=0.0))
    assert files(bank.path) == before
    bank.add(make_prompts(other, "new", *arguments))


def test_every_truncated_file_is_noticed_or_does_not_matter(
    bank: BankFolder, all_prompts: dict[str, TaskPrompts], tmp_path: Path
) -> None:
    whole = bank.path / "stars"
    noticed, messages = set(), []
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        copied = shutil.copytree(whole, tmp_path / "copy")
        broken = copied / path.relative_to(whole)
        broken.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            found = read_prompts(copied)
        except CheckpointError as error:
            noticed.add(str(path.relative_to(whole)))
            messages.append(str(error))
        else:
            assert found.manifest == all_prompts["stars"].manifest
            for tensor, values in all_prompts["stars"].tensors.items():
                np.testing.assert_array_equal(found.tensors[tensor], values)
        shutil.rmtree(copied)
    assert all(str(tmp_path / "copy") in message for message in messages)
    assert "manifest.json" in noticed
    assert sum("/d/" in name for name in noticed) >= 1


def test_changed_values_are_noticed(bank: BankFolder, all_prompts: dict[str, TaskPrompts]) -> None:
    tensors = {n: values.copy() for n, values in all_prompts["ctr"].tensors.items()}
    tensors["bank/soft_prompts"][0, 0] += 1e-6
    bank.remove("ctr")
    bank.add(dataclasses.replace(all_prompts["ctr"], tensors=tensors))
    with pytest.raises(CheckpointError, match="values have changed since they were saved"):
        bank.read("ctr")


def test_what_the_model_reads_by_is_part_of_the_task(
    bank: BankFolder, all_prompts: dict[str, TaskPrompts]
) -> None:
    """A template that changed, or that a copy left behind, would render other requests."""
    path = bank.path / "ctr" / "dataset.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec, indent=1, sort_keys=True))  # laid out otherwise
    assert bank.read("ctr").dataset_spec == all_prompts["ctr"].dataset_spec
    path.write_text(json.dumps(spec | {"name": "another shop"}))
    with pytest.raises(CheckpointError, match=r"dataset.json is damaged: .* its template decides"):
        bank.read("ctr")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"dataset.json is missing"):
        bank.read("ctr")
    # Who saved it did not know it: nothing is missing.
    unknown = dataclasses.replace(all_prompts["ctr"].manifest, dataset_fingerprint=None, task="x")
    bank.add(dataclasses.replace(all_prompts["ctr"], manifest=unknown, dataset_spec=None))
    assert bank.read("x").dataset_spec is None


def test_one_process_at_a_time_changes_a_bank(
    bank: BankFolder, all_prompts: dict[str, TaskPrompts], tmp_path: Path
) -> None:
    """Two that add to an empty bank would not see each other's backbone."""
    source, before = bank.path / "ctr", files(bank.path)
    with locked_folder(bank.path, f"changing the bank {bank.path}"):
        for change in (
            lambda: bank.remove("ctr"),
            lambda: bank.add(all_prompts["ctr"]),
            lambda: add_prompts(bank.path, source, name="again"),
        ):
            with pytest.raises(DataError, match=r"another process is changing the bank .*bank"):
                change()
        assert bank.read("ctr").manifest == all_prompts["ctr"].manifest
    assert files(bank.path) == before
    add_prompts(bank.path, source, name="again")


def test_where_nothing_can_be_written(
    bank: BankFolder, all_prompts: dict[str, TaskPrompts], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file", tmp_path / "file" / "bank"):
        with pytest.raises(CheckpointError, match=r"file.* cannot be changed"):
            BankFolder(path).add(all_prompts["ctr"])
        with pytest.raises(CheckpointError, match=r"file.* cannot be changed"):
            add_prompts(path, bank.path / "ctr")
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_refused_name_leaves_no_bank_behind(bank: BankFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name for a task"):
        add_prompts(tmp_path / "new", bank.path / "ctr", name="a.b")
    assert not (tmp_path / "new").exists()


def test_a_damaged_task_is_listed_and_removed(bank: BankFolder) -> None:
    (bank.path / "ctr" / "manifest.json").write_text('{"format": 1')
    shutil.rmtree(bank.path / "next" / "prompts")
    table = list_tasks(bank).splitlines()
    assert len(table) == 1 + 5 + 2
    assert table[-2].startswith("ctr: ")
    assert "manifest.json is damaged" in table[-2]
    assert table[-1].startswith("next: ")
    assert "prompts is missing" in table[-1]
    with pytest.raises(CheckpointError, match=r"next.prompts is missing"):
        inspect_task(bank, "next")
    bank.remove("ctr")
    bank.remove("next")
    assert "damaged" not in list_tasks(bank)


def test_what_is_no_task_is_not_removed(bank: BankFolder, tmp_path: Path) -> None:
    """A bank beside a training run, or a bank itself, named where a task was meant."""
    checkpoint = tmp_path / "foundation" / "checkpoints" / "3500" / "params"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("of three hours")
    before = files(tmp_path)
    for name in ("foundation", "bank"):
        with pytest.raises(CheckpointError, match=r"no task's folder, since it has '.*nothing"):
            BankFolder(tmp_path).remove(name)
    assert files(tmp_path) == before | {"lock": b""}


def test_a_task_is_no_bank(bank: BankFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written to it, so that it can still be removed."""
    one, other = str(bank.path / "ctr"), str(bank.path / "probe")
    before = files(bank.path)
    for words in (["add", one, "--from", other], ["remove", one, "prompts"], ["list", one]):
        assert main(["prompts", *words]) == 2
        assert f"one task and no bank: name the folder that it lies in, {bank.path}" in (
            capsys.readouterr().err
        )
    assert files(bank.path) == before
    (bank.path / "ctr" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="the folder of one task and no bank"):
        BankFolder(one)
    bank.remove("ctr")
    assert "ctr" not in bank.names()


def test_files_of_others_are_named_and_kept(bank: BankFolder) -> None:
    (bank.path / "ctr" / ".DS_Store").write_text("of a file manager")
    with pytest.raises(CheckpointError, match=r"more than a task's files: delete .*\.DS_Store'"):
        bank.remove("ctr")
    bank.read("ctr")


def test_what_killed_commands_left_goes_with_the_next_change(bank: BankFolder) -> None:
    for name in ("new.1x.unfinished", "old.removed", "notes.backup"):
        (bank.path / name).mkdir()
        (bank.path / name / "file").touch()
    assert bank.names() == NAMES
    bank.remove("ctr")
    assert sorted(path.name for path in bank.path.glob("*.*")) == ["notes.backup"]


def test_of_a_linked_task_the_link_is_removed(bank: BankFolder, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (bank.path / "ctr").rename(there)
    before = files(there)
    for _ in range(2):  # nothing of the first time is in the way
        (bank.path / "ctr").symlink_to(there)
        bank.remove("ctr")
        assert "ctr" not in bank.names()
    assert files(there) == before


def test_a_training_run_is_no_bank(
    bank_path: Path, backbone_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(backbone_dir)
    for command in (["list", "RUN"], ["add", "RUN", "--from", str(bank_path / "ctr")]):
        words = [str(backbone_dir) if word == "RUN" else word for word in command]
        assert main(["prompts", *words]) == 2
        assert "is a training run, since it has 'checkpoints'" in capsys.readouterr().err
    assert files(backbone_dir) == before


def test_a_damaged_task_hides_no_other(
    bank: BankFolder,
    all_prompts: dict[str, TaskPrompts],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The table and the JSON show every task, and exit alike."""
    list_ = ["prompts", "list", str(bank.path)]
    assert main(list_) == main([*list_, "--json"]) == 0
    (bank.path / "ctr" / "manifest.json").write_text('{"format": 1')  # the first of them
    capsys.readouterr()
    assert main([*list_, "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)
    assert sorted(listed) == NAMES
    assert list(listed["ctr"]) == ["error"]
    assert "manifest.json is damaged" in listed["ctr"]["error"]
    written = json.loads(json.dumps(all_prompts["stars"].manifest.to_json()))
    assert listed["stars"] == written
    assert main(list_) == 1
    assert "ctr: " in capsys.readouterr().out


def test_a_changed_manifest_is_refused(bank: BankFolder, tmp_path: Path) -> None:
    """It is a manifest by itself, and would have been used."""
    file = bank.path / "stars" / "manifest.json"
    values = json.loads(file.read_text())
    values["settings"]["sampling_rate"] = 0.25
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged: it is not what was writ"):
        bank.read("stars")
    with pytest.raises(CheckpointError, match="manifest_fingerprint does not fit"):
        add_prompts(tmp_path / "other", bank.path / "stars")
    assert not (tmp_path / "other").exists()


def test_the_layout_of_a_manifest_does_not_matter(bank: BankFolder) -> None:
    file = bank.path / "stars" / "manifest.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values, sort_keys=True))
    bank.read("stars")
    del values["manifest_fingerprint"]
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="is damaged"):
        bank.read("stars")


def test_report(bank: BankFolder, tmp_path: Path) -> None:
    table = {line.split()[0]: line.split() for line in list_tasks(bank).splitlines()[1:]}
    assert table["ctr"][1:5] == ["scoring", "option_adapter", "5", "2"]
    assert table["near"][1:5] == ["retrieval", "lora_embedding_pooling", "0", "0"]
    report = inspect_task(bank, "stars")
    assert "validation/auc 0.75" in report
    assert "positive_classes (3, 4)" in report
    assert "(intact)" in report
    (tmp_path / "empty").mkdir()
    assert "has no tasks" in list_tasks(BankFolder(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match=r"no bank at .*nowhere"):
        BankFolder(tmp_path / "nowhere").names()


def test_from_another_bank(bank: BankFolder, tmp_path: Path) -> None:
    (added,) = add_prompts(tmp_path / "mine", bank.path / "ctr", name="clicks")
    assert read_prompts(added).manifest.task == "clicks"
    assert (
        BankFolder(tmp_path / "mine").read("clicks").tensors.keys()
        == bank.read("ctr").tensors.keys()
    )
    with pytest.raises(ConfigError, match="leave out --task and --step"):
        add_prompts(tmp_path / "mine", bank.path / "ctr", step=3)
    # A link has the name that its owner gave it.
    (bank.path / "linked").symlink_to(bank.path / "near")
    (added,) = add_prompts(tmp_path / "mine", bank.path / "linked")
    assert added.name == read_prompts(added).manifest.task == "linked"


def test_what_cannot_be_added_is_called_what_it_is(bank: BankFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bank is a bank: name the folder of .*bank.ctr or "):
        add_prompts(tmp_path / "mine", bank.path)
    (bank.path / "ctr" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"ctr.manifest\.json is missing: "):
        add_prompts(tmp_path / "mine", bank.path / "ctr")
    assert not (tmp_path / "mine").exists()


def test_methods_are_called_as_their_files() -> None:
    soft = {"num_prompts": 4, "num_options": 2}
    for prompts, method in (
        (PromptConfig(**soft, head="option"), "option"),
        (PromptConfig(**soft, head="option", adapter_rank=2), "option_adapter"),
        (
            PromptConfig(**soft, head="option", embedding_rank=1),
            "option_embedding",
        ),
        (
            PromptConfig(**soft, head="option", adapter_rank=2, pooling_rank=1),
            "option_adapter_pooling",
        ),
        (PromptConfig(**soft, head="linear"), "prompt"),
        (PromptConfig(num_options=2, head="linear", adapter_rank=2), "adapter"),
        (PromptConfig(num_options=2, head="linear", lora_rank=2), "lora"),
        (PromptConfig(num_options=2, head="linear", ia3_targets=("key",)), "ia3"),  # type: ignore[call-arg]
        (PromptConfig(num_options=2, head="linear"), "linear_probe"),
    ):
        assert method_of(prompts, "prompts") == method
        assert method_of(prompts, "all") == "full"
        tuning = Path(__file__).parents[2] / "gin_configs" / "tuning"
        assert (tuning / f"{method}.gin").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def paths_in(values: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [prefix] if prefix else []
    if isinstance(values, dict):
        for key, inner in values.items():
            found += paths_in(inner, (*prefix, key))
    return found


@settings(max_examples=80)
@given(data=st.data())
def test_any_damage_to_a_manifest_is_an_error_of_ours(
    data: st.DataObject, all_prompts: dict[str, TaskPrompts]
) -> None:
    manifest = all_prompts["ctr"].manifest
    values = json.loads(json.dumps(manifest.to_json()))
    assert parse_prompt_manifest(json.dumps(values), "here") == manifest
    path = data.draw(st.sampled_from(paths_in(values)))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        del inner[path[-1]]
    else:
        inner[path[-1]] = data.draw(JSON)
    text = json.dumps(values)
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text)))]
    message = ""
    try:
        parsed = parse_prompt_manifest(text, "here")
    except CheckpointError as error:
        message = str(error)
    assert message.startswith("here ") if message else parsed == manifest
