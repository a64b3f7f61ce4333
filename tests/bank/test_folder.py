"""A bank on disk: tasks come and go whole, belong to one model, and are found out when damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.bank.export import add_prompts
from m6rec_jax.bank.folder import BankFolder, TaskPrompts, method_of, read_prompts
from m6rec_jax.cli import main
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.model import PromptConfig
from tests.bank.conftest import Backbone, make_prompts

NAMES = ["ctr", "genres", "near", "next", "probe", "stars", "titles"]


@pytest.fixture
def bank(bank_path: Path, tmp_path: Path) -> BankFolder:
    return BankFolder(shutil.copytree(bank_path, tmp_path / "bank"))


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_read_as_written(bank: BankFolder, all_prompts: dict[str, TaskPrompts]) -> None:
    assert bank.names() == NAMES
    for name in NAMES:
        found, written = bank.read(name), all_prompts[name]
        assert found.manifest == written.manifest
        assert set(found.tensors) == set(written.tensors)
        for tensor, values in written.tensors.items():
            np.testing.assert_array_equal(found.tensors[tensor], values)


def test_remove_and_add_again(bank: BankFolder, all_prompts: dict[str, TaskPrompts]) -> None:
    before = files(bank.path)
    bank.remove("ctr")
    assert files(bank.path) == {n: c for n, c in before.items() if n != "ctr.safetensors"}
    with pytest.raises(CheckpointError, match="no task 'ctr'"):
        bank.remove("ctr")
    bank.add(all_prompts["ctr"])
    after = files(bank.path)
    assert after == before
    with pytest.raises(ConfigError, match="--name"):
        bank.add(all_prompts["ctr"])
    assert files(bank.path) == after


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_add_leaves_nothing(
    bank: BankFolder,
    all_prompts: dict[str, TaskPrompts],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """Of several tasks none, where the file of one cannot be written."""
    for name in ("probe", "stars"):
        bank.remove(name)
    before, write = files(bank.path), Path.write_bytes

    def fail(path: Path, content: bytes) -> int:
        if "stars" in str(path):
            raise error
        return write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail)
        with pytest.raises(type(error)):
            bank.add(all_prompts["probe"], all_prompts["stars"])
    assert files(bank.path) == before


def test_prompts_of_another_model(
    bank: BankFolder, backbone: Backbone, all_prompts: dict[str, TaskPrompts]
) -> None:
    before = files(bank.path)
    manifest = all_prompts["ctr"].manifest
    arguments = (manifest.prompts, manifest.settings, 0)
    stranger = backbone._replace(params={**backbone.params, "encoder": backbone.params["decoder"]})
    late = backbone._replace(config=backbone.config.replace(late_layers_start=0))
    relu = dataclasses.replace(manifest.prompts, adapter_activation="relu")
    words = dataclasses.replace(manifest, task="new", vocabulary_fingerprint="0123")
    for prompts, message in (
        (make_prompts(stranger, "new", *arguments), "backbone_fingerprint"),
        (make_prompts(late, "new", *arguments), "late_layers_start 0, but .* has 1"),
        (make_prompts(backbone, "new", relu, manifest.settings, 0), "adapter_activation"),
        (dataclasses.replace(all_prompts["ctr"], manifest=words), "vocabulary_fingerprint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            bank.add(prompts)
    for name in ("", "a/b", "..", ".hidden", "a.b", "ä"):
        with pytest.raises(ConfigError, match="is no name for a task"):
            bank.add(all_prompts["ctr"].named(name))
    assert files(bank.path) == before
    # Also where the first task has no adapters, or is damaged.
    bank.add(all_prompts["probe"].named("a_probe"))
    (bank.path / "b.safetensors").touch()
    with pytest.raises(CheckpointError, match="adapter_activation"):
        bank.add(make_prompts(backbone, "new", relu, manifest.settings, 0))
    # How the backbone is computed is no matter.
    other = backbone._replace(config=backbone.config.replace(remat="full", dropout_rate=0.0))
    bank.add(make_prompts(other, "new", *arguments))


@pytest.mark.parametrize("kept", [0, 4, 300, -5])
def test_a_truncated_file_is_noticed(bank: BankFolder, kept: int) -> None:
    path = bank.path / "stars.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged"):
        read_prompts(path)


def test_changed_values_are_noticed(bank: BankFolder, all_prompts: dict[str, TaskPrompts]) -> None:
    tensors = {n: values.copy() for n, values in all_prompts["ctr"].tensors.items()}
    tensors["bank/soft_prompts"][0, 0] += 1e-6
    bank.remove("ctr")
    bank.add(dataclasses.replace(all_prompts["ctr"], tensors=tensors))
    with pytest.raises(CheckpointError, match="values have changed since they were saved"):
        bank.read("ctr")


def test_one_process_at_a_time_changes_a_bank(
    bank: BankFolder, all_prompts: dict[str, TaskPrompts]
) -> None:
    """Two that add to an empty bank would not see each other's backbone."""
    before = files(bank.path)
    with locked_folder(bank.path, f"changing the bank {bank.path}"):
        for change in (lambda: bank.remove("ctr"), lambda: bank.add(all_prompts["ctr"].named("x"))):
            with pytest.raises(DataError, match="another process"):
                change()
        assert bank.read("ctr").manifest == all_prompts["ctr"].manifest
    assert files(bank.path) == before


def test_a_damaged_task_hides_no_other_and_can_be_removed(
    bank: BankFolder,
    all_prompts: dict[str, TaskPrompts],
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = ["prompts", "list", str(bank.path)]
    assert main(table) == main([*table, "--json"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[:8]}
    assert rows["ctr"][1:5] == ["scoring", "option_adapter", "5", "2"]
    assert rows["near"][1:5] == ["retrieval", "lora_embedding_pooling", "0", "0"]
    (bank.path / "ctr.safetensors").write_text("{")  # the first of them
    assert main([*table, "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)
    assert sorted(listed) == NAMES
    assert "ctr.safetensors is damaged" in listed["ctr"]["error"]
    assert listed["stars"] == json.loads(
        json.dumps(dataclasses.asdict(all_prompts["stars"].manifest))
    )
    assert main(table) == 1
    bank.remove("ctr")
    assert main(table) == 0
    assert main(["prompts", "inspect", str(bank.path), "stars"]) == 0


def test_from_another_bank(bank: BankFolder, tmp_path: Path) -> None:
    (added,) = add_prompts(tmp_path / "mine", bank.path / "ctr.safetensors", name="clicks")
    assert read_prompts(added).manifest.task == "clicks"
    assert read_prompts(added).tensors.keys() == bank.read("ctr").tensors.keys()
    with pytest.raises(ConfigError, match="leave out --task and --step"):
        add_prompts(tmp_path / "mine", bank.path / "ctr.safetensors", step=3)


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
