"""Exports answer as the model they were made of, also without m6rec_jax, and refuse damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.programs.exported_programs import Exported, ExportError
from m6rec_jax.errors import DataError
from m6rec_jax.export import command, stablehlo
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.titles import Titles, open_titles
from tests.export.asked import CANDIDATES, HISTORIES, TASKS
from tests.serving import served_films


def shapes(model: Any) -> dict[str, Any]:
    lengths = model.settings.source_length, model.settings.target_length
    return dict(zip(("source_buckets", "target_buckets"), ((own,) for own in lengths), strict=True))


def answers(model: Any, copies: int, titles: Titles, **options: Any) -> list[Any]:
    """Of every engine, for so many times three requests."""
    trie, seen = titles.trie, [[3, 5], [], [7]]
    histories, candidates = HISTORIES * copies, CANDIDATES * copies
    plain = [TextRequest(history) for history in histories]
    given = zip(plain, ["drama:", "", "a"] * copies, seen * copies, strict=True)
    requests = [one._replace(prefix=prefix, seen=own) for one, prefix, own in given]
    own = {"batch_sizes": (1, 7, 64)} | shapes(model) | options
    retriever, generator = model.retriever("next", **own), model.generator("titles", **own)
    return [
        *model.scorer("ctr", **own).score_requests(histories, candidates),
        retriever.embed_users(histories),
        retriever.embed_items([text for texts in candidates for text in texts]),
        [tuple(text) for text in generator.write(plain)],
        [[tuple(text) for text in own] for own in generator.beam_search(plain)],
        [tuple(text) for text in generator.write(requests, trie=trie)],
        [[tuple(title) for title in own] for own in generator.recommend(requests, trie, 12)],
    ]


@pytest.fixture(scope="module")
def run(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served_films.copy_run(served / "run", tmp_path_factory.mktemp("run") / "run", [*TASKS])


@pytest.fixture(scope="module")
def titles(run: Path, served: Path) -> Titles:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M6REC_DATA_DIR", str(served / "cache"))
        found = open_titles(load_model(run))
    assert found is not None
    assert found.task == "titles"
    return found


@pytest.fixture(scope="module")
def exported(run: Path, titles: Titles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, recorder = load_model(run), Recorder()
    answers(model, 3, titles, programs=recorder, segments=None)
    folder = tmp_path_factory.mktemp("exported") / "films"
    asked = Asked(model, recorder, [], stablehlo.PLATFORMS, titles=titles)
    results = command.write_export(folder, "stablehlo", asked)
    # By a process with jax alone: had it imported anything of ours, nothing would be written.
    assert all(own["largest_difference"] < 1e-5 for own in results.values())
    assert set(results) == {
        *("score", "user", "item", "greedy", "beam_search_4"),
        *("greedy_titles", "beam_search_12_titles"),
    }
    return folder


def test_an_export_answers_as_its_model(run: Path, exported: Path, titles: Titles) -> None:
    """With numbers of requests that it was not checked with, too."""
    opened, recorder = Exported(exported), Recorder()
    answers(load_model(run), 4, titles, programs=recorder, segments=None)
    for call in recorder.calls:
        outputs = opened.run(call.program, call.inputs)
        for name, values in call.outputs.items():
            # The same float32 program, compiled again.
            np.testing.assert_allclose(outputs[name], values, atol=1e-6, err_msg=call.program)


@pytest.mark.parametrize("name", ["weights.npz", "programs/score.jax_export", "export.json"])
def test_a_truncated_file_is_refused(exported: Path, name: str) -> None:
    path = exported / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(ExportError, match=name.split("/")[-1]):
            Exported(exported)
    finally:
        path.write_bytes(whole)


def test_inputs_that_do_not_fit_are_refused(exported: Path) -> None:
    opened = Exported(exported)
    name, inputs, _ = opened.held_out()[0]
    with pytest.raises(ExportError, match="has no program 'scores', but score"):
        opened.run("scores", inputs)
    with pytest.raises(ExportError, match="score takes decoder_block_ids"):
        opened.run(name, {})
    long = {
        key: np.pad(value, ((0, 0), *[(0, 99)] * (value.ndim - 1))) for key, value in inputs.items()
    }
    with pytest.raises(ExportError, match=r"score: .* has shape .*does not fit"):
        opened.run(name, long)


def test_an_export_that_differs_is_not_written(run: Path, tmp_path: Path) -> None:
    model, recorder = load_model(run), Recorder()
    scorer = model.scorer("ctr", programs=recorder, segments=None, **shapes(model))
    scorer.score_requests(HISTORIES, CANDIDATES)
    for call in recorder.calls:
        call.outputs["values"] = 1.001 * call.outputs["values"]
    with pytest.raises(DataError, match="'score' of the export differs from the model by"):
        command.write_export(tmp_path / "films", "stablehlo", Asked(model, recorder, [], ["cpu"]))
    with pytest.raises(DataError, match="nothing of the export was checked"):
        command.write_export(tmp_path / "films", "stablehlo", Asked(model, Recorder(), [], ["cpu"]))
    assert not (tmp_path / "films").exists()
