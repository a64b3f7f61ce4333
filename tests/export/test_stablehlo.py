"""Exports answer as the model they were made of, also without m6rec_jax, and refuse damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.programs.exported_programs import Exported, ExportError
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.export import command, stablehlo
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.titles import Titles, open_titles
from m6rec_jax.serving.batch_inference import infer_requests
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.service import Service, ServiceOptions
from tests.export.asked import CANDIDATES, HISTORIES, TASKS
from tests.pipeline.shop_rows import ITEMS
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
    ours, theirs = (answers(load_model(one), 4, titles) for one in (run, exported))
    for own, their in zip(ours, theirs, strict=True):
        if isinstance(own, np.ndarray):
            # The same float32 program, compiled again.
            np.testing.assert_allclose(their, own, atol=1e-6)
        else:
            assert [row[0] for row in their] == [row[0] for row in own]


def test_a_task_of_shorter_texts(run: Path, exported: Path) -> None:
    """One of a bank, whose programs have room for the longest texts of all tasks."""
    ours, theirs = (
        load_model(one)
        .generator("titles", target_length=8)
        .write([TextRequest(*one) for one in zip(HISTORIES, ["", "a", ""], strict=True)])
        for one in (run, exported)
    )
    assert not all(text.ended for text in ours)
    for own, their in zip(ours, theirs, strict=True):
        assert (their.text, their.ended) == (own.text, own.ended)
        assert their.log_probability == pytest.approx(own.log_probability, abs=1e-5)


@pytest.mark.parametrize(
    "names", [ITEMS[:5], [f"{n} {text}" for text in ITEMS for n in range(30)]], ids=["few", "many"]
)
def test_titles_of_another_catalogue(run: Path, exported: Path, names: list[str]) -> None:
    """The server's own trie is what counts, whatever the export was made with."""
    found = []
    for model in map(load_model, (run, exported)):
        trie, generator = TitleTrie(model.vocabulary, names), model.generator("titles")
        requests = [TextRequest(history, seen=[0, 2]) for history in HISTORIES]
        found.append(generator.recommend(requests, trie, 5, num_beams=12))
    for own, their in zip(*found, strict=True):
        assert [title.indices for title in their] == [title.indices for title in own]
        assert not {0, 2} & {index for title in their for index in title.indices}


def test_an_export_is_served(exported: Path, run: Path, served: Path, tmp_path: Path) -> None:
    """With titles of the catalogue, too, without those of a history; and to files of requests."""
    options = ServiceOptions(
        prepared=str(served / "cache" / served_films.PREPARED), batch_sizes=(1, 4)
    )
    service = Service.open(exported, options=options)
    jobs = [("ctr", "scoring"), ("titles", "generation"), ("titles", "title_recommendation")]
    service.warm_up(jobs)
    row = {"time": served_films.NOW, "user": {"taste": "drama"}, "history": []}
    row["candidates"] = ["f1", "f2"]
    accepted: Any = service.accept(row, task="ctr")
    (result,) = service.answer([accepted])
    assert [item.id for item in result.items] == ["f1", "f2"]
    files = served_films.write_rows(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
    shared: Any = {"prepared": options.prepared, "progress": False}
    (report,) = infer_requests(*files, exported, task="ctr", batch_size=4, **shared)
    (answered,) = served_films.read_rows(Path(report.output))
    np.testing.assert_allclose(answered["probabilities"], result.values["probabilities"], 1e-5)
    index = build_index(tmp_path / "index", exported, task="next", batch_size=4, **shared)
    assert index.count == len(served_films.ITEMS)
    del row["candidates"]
    row |= {"history": [{"item": "f3", "time": 1.0, "value": 5}], "about": {"genre": "drama"}}
    asked = {"task": "titles", "job": "title_recommendation"}
    found = []
    for own in (service, Service.open(run, options=options)):
        accepted = own.accept(row, **asked)
        found.append(own.answer([accepted])[0].columns()["item_ids"])
    assert found[0] == found[1]
    assert "f3" not in found[0]
    scorer = load_model(exported, step=7).likelihood_scorer("ctr", contrast=("liked", "disliked"))
    with pytest.raises(ConfigError, match=r"no program 'likelihood', but score"):
        scorer.score_requests(HISTORIES, CANDIDATES)
    scorer = load_model(exported).scorer("ctr")
    scorer.task_features = lambda settings, size: {"exit_depth": np.zeros((size, 1), np.int32)}
    with pytest.raises(ConfigError, match=r"differs in exit_depth, .*positive_classes"):
        scorer.score_requests(HISTORIES, CANDIDATES)
    with pytest.raises(CheckpointError, match="films is step 7, not step 6"):
        load_model(exported, step=6)


@pytest.mark.parametrize("name", ["weights.npz", "programs/score.jax_export", "export.json"])
def test_a_truncated_file_is_refused(exported: Path, name: str) -> None:
    path = exported / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(CheckpointError, match=name.split("/")[-1]):
            load_model(exported)
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
    with pytest.raises(ExportError, match=r"score: .* has shape .*, over"):
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
