"""A bank as commands see it: tasks by name, and fingerprints that other tasks do not change."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import gin
import numpy as np
import pytest

from m6rec_jax.bank.bundle import load_with_bank
from m6rec_jax.bank.folder import BankFolder, TaskPrompts
from m6rec_jax.bank.manifest import dataset_fingerprint
from m6rec_jax.errors import ConfigError
from m6rec_jax.inference.bundle import Bundle
from tests.bank.conftest import Backbone, make_prompts


def bundle_of(backbone: Path, bank: Path, *tasks: str) -> Bundle:
    gin.bind_parameter("load_bank.tasks", tasks)
    return load_with_bank(backbone, bank=bank)


def test_tasks_by_name(bank_path: Path, backbone_dir: Path) -> None:
    bundle = bundle_of(backbone_dir, bank_path, "ctr", "titles")
    assert sorted(bundle.settings.tasks) == ["ctr", "titles"]
    assert bundle.step == 3
    template = bundle.template("ctr")
    assert template is not None
    assert template.outcome(1.0) == "liked"
    asked = [["likes comedy"]], [["Film A"]]
    scores = bundle.scorer("ctr").score_requests(*asked)
    assert 0 < scores[0][0] < 1
    likelihood = bundle.likelihood_scorer("titles").score_requests(*asked)
    assert np.isfinite(likelihood[0][0])
    assert bundle.generator("titles").greedy(asked[0])
    with pytest.raises(ConfigError, match="several tasks; name one: ctr, titles"):
        bundle.scorer()
    with pytest.raises(ConfigError, match="no task 'next': ctr, titles"):
        bundle.retriever("next")
    with pytest.raises(ConfigError, match="retrieval projections, nor was it loaded with room"):
        bundle.retriever("ctr")


def test_a_run_without_a_bank(backbone_dir: Path) -> None:
    assert type(load_with_bank(backbone_dir)) is Bundle


def test_what_a_fingerprint_depends_on(
    bank_path: Path,
    backbone_dir: Path,
    backbone: Backbone,
    all_prompts: dict[str, TaskPrompts],
    tmp_path: Path,
) -> None:
    near, next_ = (
        bundle_of(backbone_dir, bank_path, name).fingerprint(name) for name in ("near", "next")
    )
    assert near != next_
    others = bundle_of(backbone_dir, bank_path, "ctr", "genres", "next", "titles")
    assert others.fingerprint("next") == next_
    # Those of 'near' are narrower: its vectors are filled up to the width of those of 'next'.
    assert bundle_of(backbone_dir, bank_path, "near", "next").fingerprint("near") != near
    gin.bind_parameter("load_bank.frozen_dtype", "bfloat16")
    assert bundle_of(backbone_dir, bank_path, "next").fingerprint() != next_
    gin.clear_config()

    changed = BankFolder(shutil.copytree(bank_path, tmp_path / "bank"))
    changed.remove("next")
    own = all_prompts["next"].manifest
    changed.add(make_prompts(backbone, "next", own.prompts, own.settings, 99))
    assert bundle_of(backbone_dir, changed.path, "next").fingerprint() != next_


def test_every_task_has_its_own_data_set(
    bank_path: Path, backbone_dir: Path, all_prompts: dict[str, TaskPrompts], tmp_path: Path
) -> None:
    """Also where two were trained on different versions of the same one."""
    bank = BankFolder(shutil.copytree(bank_path, tmp_path / "bank"))
    ctr = all_prompts["ctr"]
    assert ctr.dataset_spec is not None
    spec = {**ctr.dataset_spec, "template": {**ctr.dataset_spec["template"], "item": "a {title}"}}
    manifest = dataclasses.replace(
        ctr.manifest, task="newer", dataset_fingerprint=dataset_fingerprint(spec)
    )
    bank.add(dataclasses.replace(ctr, manifest=manifest, dataset_spec=spec))
    bundle = bundle_of(backbone_dir, bank.path, "ctr", "newer")
    assert bundle.dataset_spec("ctr") == ctr.dataset_spec
    assert bundle.dataset_spec("newer") == spec
    assert bundle.fingerprint("ctr") != bundle.fingerprint("newer")
