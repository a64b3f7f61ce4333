"""A bank as commands see it: tasks by name, and fingerprints that other tasks do not change."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from m6rec_jax.bank.folder import BankFolder, TaskPrompts
from m6rec_jax.bank.loading import LoadedBank, load_with_bank
from m6rec_jax.engine.candidates.scoring import LikelihoodScorer, Scorer
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.labels import Contrast
from tests.bank.conftest import Alone, Backbone, S, T, make_prompts, save_backbone

# The bank pads to other shapes than a task alone has, and adds up in another order.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def loaded_bank(backbone: Path, bank: Path, *tasks: str) -> LoadedBank:
    gin.bind_parameter("load_bank.tasks", tasks)
    loaded = load_with_bank(backbone, bank=bank)
    assert isinstance(loaded, LoadedBank)
    return loaded


def test_tasks_by_name(
    bank_path: Path, backbone_dir: Path, backbone: Backbone, alone: Alone
) -> None:
    loaded = loaded_bank(backbone_dir, bank_path, "ctr", "titles")
    assert sorted(loaded.settings.tasks) == ["ctr", "titles"]
    assert loaded.step == 3
    template = loaded.template("ctr")
    assert template is not None
    assert template.outcome(1.0) == "liked"
    histories, candidates = [["likes comedy"]], [["Film A", "Film B"]]

    def by_itself(
        kind: Callable[..., Any], name: str, length: int, *labels: Contrast, **settings: Any
    ) -> Any:
        tasks = {"": TaskSettings(**settings)}
        options = EngineOptions(S, length, tasks=tasks, batch_sizes=(1,))
        return kind(*alone(name), backbone.vocabulary, options, *labels)

    np.testing.assert_allclose(
        loaded.scorer("ctr").score_requests(histories, candidates),
        by_itself(Scorer, "ctr", T, sampling_rate=0.5).score_requests(histories, candidates),
        **CLOSE,
    )
    # Of the second row, and shorter than what the bank has room for.
    labels = Contrast("liked", "disliked")
    np.testing.assert_allclose(
        loaded.likelihood_scorer(labels, "titles").score_requests(histories, candidates),
        by_itself(LikelihoodScorer, "titles", 12, labels).score_requests(histories, candidates),
        **CLOSE,
    )
    (text,), (expected,) = (
        generator.write([TextRequest(own) for own in histories])
        for generator in (loaded.generator("titles"), by_itself(Generator, "titles", 12))
    )
    assert text.text == expected.text
    assert text.log_probability == pytest.approx(expected.log_probability, rel=1e-3)
    (longer,) = by_itself(Generator, "titles", T).write([TextRequest(histories[0])])
    assert longer.text != expected.text
    with pytest.raises(ConfigError, match="no task 'next': ctr, titles"):
        loaded.retriever("next")
    with pytest.raises(ConfigError, match=r"retrieval projections: .* BankCapacity.retrieval_dim"):
        loaded.retriever("ctr")
    loaded = loaded.without("titles")  # no other task's prompts are taken for it
    with pytest.raises(ConfigError, match="no task 'titles': ctr"):
        loaded.generator("titles")


def test_what_a_fingerprint_depends_on(
    bank_path: Path,
    backbone_dir: Path,
    backbone: Backbone,
    all_prompts: dict[str, TaskPrompts],
    tmp_path: Path,
) -> None:
    near, next_ = (
        loaded_bank(backbone_dir, bank_path, name).fingerprint(name) for name in ("near", "next")
    )
    assert near != next_
    others = loaded_bank(backbone_dir, bank_path, "ctr", "genres", "next", "titles")
    assert others.fingerprint("next") == next_
    # Any run that has the backbone will do, however it was trained.
    other = backbone.config.replace(dropout_rate=0.3, embedding_stddev=0.1, remat="full")
    tuned = save_backbone(tmp_path / "tuned", backbone._replace(config=other))
    assert loaded_bank(tuned, bank_path, "next").fingerprint() == next_
    rounded = backbone.config.replace(matmul_dtype="bfloat16")
    rounding = save_backbone(tmp_path / "rounding", backbone._replace(config=rounded))
    assert loaded_bank(rounding, bank_path, "next").fingerprint() != next_
    # Those of 'near' are narrower: its vectors are filled up to the width of those of 'next'.
    assert loaded_bank(backbone_dir, bank_path, "near", "next").fingerprint("near") != near
    gin.bind_parameter("load_bank.frozen_dtype", "bfloat16")
    assert loaded_bank(backbone_dir, bank_path, "next").fingerprint() != next_
    gin.bind_parameter("load_bank.frozen_dtype", "bf16")
    with pytest.raises(ConfigError, match="'bf16' is not one of float32, bfloat16"):
        loaded_bank(backbone_dir, bank_path, "next")
    gin.clear_config()

    changed = BankFolder(shutil.copytree(bank_path, tmp_path / "bank"))
    changed.remove("next")
    own = all_prompts["next"].manifest
    changed.add(make_prompts(backbone, "next", own.prompts, own.settings, 99))
    assert loaded_bank(backbone_dir, changed.path, "next").fingerprint() != next_


def test_every_task_has_its_own_data_set(
    bank_path: Path, backbone_dir: Path, all_prompts: dict[str, TaskPrompts], tmp_path: Path
) -> None:
    """Also where two were trained on different versions of the same one."""
    bank = BankFolder(shutil.copytree(bank_path, tmp_path / "bank"))
    ctr = all_prompts["ctr"].manifest
    assert ctr.dataset_spec is not None
    spec = {**ctr.dataset_spec, "template": {**ctr.dataset_spec["template"], "item": "a {title}"}}
    manifest = dataclasses.replace(ctr, task="newer", dataset_spec=spec)
    bank.add(dataclasses.replace(all_prompts["ctr"], manifest=manifest))
    loaded = loaded_bank(backbone_dir, bank.path, "ctr", "newer")
    assert loaded.dataset_spec("ctr") == ctr.dataset_spec
    assert loaded.dataset_spec("newer") == spec
    assert loaded.fingerprint("ctr") != loaded.fingerprint("newer")
