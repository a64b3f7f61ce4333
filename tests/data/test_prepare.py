"""`prepare` from folder to manifest: rows, texts, restarts, negatives and errors."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data import prepare as prepare_module
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.rendering.vocabulary_text import train_on_prepared
from m6rec_jax.data.splitting.negatives import NegativeSampler, corrected_probability
from m6rec_jax.data.store.manifest import MANIFEST, Manifest
from m6rec_jax.data.store.prepared import EVENTS, Prepared
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.prepared_rows import read_rows
from m6rec_jax.text.records import Item

DAY = 86_400.0


def log(num_users: int = 4, per_user: int = 10) -> list[tuple[int, int, float, float]]:
    return [
        (user, (3 * user + place) % 12, DAY * place + user, 1.0 + (user + place) % 5)
        for place in range(per_user)
        for user in range(num_users)
    ]


def rows_of(prepared: Prepared, view: str, part: str) -> list[dict]:
    """Rows of a part, or of all parts for "*"."""
    parts = [name for name in prepared.num_rows(view) if part in (name, "*")]
    return [
        {name: getattr(value, "tolist", lambda value=value: value)() for name, value in row.items()}
        for name in parts
        for row in read_rows(prepared, view, name)
    ]


def run(folder: Path, out: Path, split: str = "per_user_temporal", **options) -> Prepared:
    return prepare(folder, out, split, PrepareOptions(**options), progress=False)


def test_every_view_of_a_shop(write_shop, tmp_path: Path) -> None:
    prepared = run(write_shop(log()), tmp_path / "out", group_size=3)
    assert prepared.manifest.counts == {
        "users": 8,
        "acting_users": 4,
        "items": 12,
        "events": {"train": 32, "validation": 4, "test": 4},
        "held_out_items": 0,
    }
    # Twice as many as those who act have, not as all users have.
    assert prepared.manifest.options["max_events"] == 20
    for view, number in (("groups", 12), ("next_items", 8), ("documents", 20)):
        assert prepared.num_rows(view) == {"train": number, "validation": 4, "test": 4}
    for row in rows_of(prepared, "groups", "*"):
        assert row["labels"] == [int(rating >= 4) for rating in row["ratings"]]
        for index, text in zip(row["item_indices"], row["candidates"], strict=True):
            assert text.startswith(f"Thing {index}")
    last, following = (
        next(row for row in rows_of(prepared, view, "test") if row["user_id"] == "u1")
        for view in ("groups", "next_items")
    )
    assert last["history"] == [
        # 4 of 9 liked, sum 29, the validation event included; of all 32 training events 13 and
        # 97: (4 + 5 * 13/32) / (9 + 5).
        "21 years, 9 events, 43 percent, mean 3.15",
        *(
            f"{'liked' if (1 + place) % 5 >= 3 else 'disliked'} Thing {(3 + place) % 12}, "
            f"{9 - place} day{'s' if place < 8 else ''} ago"
            for place in range(9)
        ),
        "Saturday",
    ]
    assert last["candidates"][0].startswith("Thing 0 by maker 0, 3, ")
    assert following["items"] == ["Thing 0 by maker 0"]
    assert following["history"] == last["history"]
    targets = [row["target"] for row in rows_of(prepared, "documents", "train")]
    assert "Thing 0 by maker 0. tags: red, green." in targets
    assert any(t.startswith("Thing 0 by maker 0. disliked. Thing 1 by maker 1") for t in targets)
    catalogue = prepared.catalogue()
    trained = np.concatenate([r["item_indices"] for r in rows_of(prepared, "next_items", "train")])
    assert catalogue.train_counts.tolist() == np.bincount(trained, minlength=12).tolist()
    assert np.exp(catalogue.log_frequency).sum() == pytest.approx(1.0)
    tags = ("red", "green", "blue", "soft")
    assert catalogue.items[4] == Item("i4", {"title": "Thing 4", "maker": None, "tags": tags})
    assert prepared.template().item(catalogue.items[0]) == catalogue.texts[0]


@pytest.mark.parametrize("history", ["all", "sampled"])
def test_a_sample_alone_is_known(write_shop, tmp_path: Path, history: str) -> None:
    """Rows of every part, whose users' validation events and other rows are left out or not."""
    prepared = run(
        write_shop(log()),
        tmp_path / "out",
        f"few_shot:n=6,seed=1,history={history}",
        views=("groups",),
    )
    rows = {part: rows_of(prepared, "groups", part) for part in ("train", "validation", "test")}
    drawn = {(row["user_index"], item) for row in rows["train"] for item in row["item_indices"]}
    assert len(drawn) == 6
    told = {
        (row["user_index"], int(text.split()[2].rstrip(",")))
        for row in rows["test"]
        for text in row["history"]
        if " Thing " in text
    }
    validated = {(row["user_index"], i) for row in rows["validation"] for i in row["item_indices"]}
    if history == "sampled":
        # Test rows come last: they may tell of the whole sample, and of nothing else.
        assert told == drawn
        assert prepared.manifest.visible["test"] == ["train", "context"]
        for row in rows["test"]:
            count = sum(user == row["user_index"] for user, _ in drawn)
            assert (f", {count} event" in row["history"][0]) == bool(count)
    else:
        assert told > validated
        assert told > drawn
    counts = prepared.catalogue().train_counts
    assert counts.sum() == prepared.statistics().totals.events
    assert prepared.statistics().totals.events == (6 if history == "sampled" else 32)


def test_entries_of_the_template_can_be_replaced(write_shop, tmp_path: Path) -> None:
    folder, out = write_shop(log()), tmp_path / "out"
    own = run(folder, out, views=("groups",))
    told = {"candidate": "{title}[ ({maker})]"}
    other = run(folder, out, views=("groups",), template=told)
    assert own.manifest.source != other.manifest.source
    texts = [text for row in rows_of(other, "groups", "train") for text in row["candidates"]]
    assert "Thing 0 (maker 0)" in texts
    assert not any("by" in text for text in texts)
    # What serving reads of the template is what the rows were written with.
    assert other.template().candidate(other.catalogue().items[0]) == "Thing 0 (maker 0)"
    with pytest.raises(ConfigError, match="candidat"):
        run(folder, out, views=("groups",), template={"candidat": "{title}"})


def test_restart_does_only_what_is_missing(write_shop, tmp_path, monkeypatch) -> None:
    folder, out = write_shop(log()), tmp_path / "out"
    rendered: list[tuple[str, ...]] = []
    whole_run = prepare_module.run

    def counting(job, events, shards, names, *others):
        rendered.append(tuple(names))
        return whole_run(job, events, shards, names, *others)

    monkeypatch.setattr(prepare_module, "run", counting)
    first = run(folder, out, views=("groups", "documents"))
    assert rendered.pop() == ("groups", "documents")
    assert not (first.folder / "unfinished").exists()
    with monkeypatch.context() as nothing_is_read:
        nothing_is_read.setattr(prepare_module, "EventTable", None)
        assert run(folder, out, views=("groups", "documents")).manifest == first.manifest
        # What no row depends on: what is said of the data set, and a split of another name.
        described = {"description": "a shop", "splits": {"mine": {"kind": "by_user"}}}
        write_shop(log(), **described)
        again = run(folder, out, views=("groups", "documents")).manifest
        assert again.dataset_spec == first.dataset_spec | described
        again.dataset_spec = first.dataset_spec
        assert again == first.manifest
    # Another option renders again what it changes, and nothing else.
    changed = run(folder, out, views=("groups", "documents"), group_size=2)
    assert rendered.pop() == ("groups",)
    assert changed.num_rows("groups")["train"] == 16
    run(folder, out, views=("groups", "next_items"), group_size=2)
    assert rendered.pop() == ("next_items",)
    for name in ("co_occurrence.npz", "ease.npz"):
        path = changed.folder / name
        before = path.read_bytes()
        path.unlink()
        run(folder, out, views=("groups", "next_items"), group_size=2)
        assert (rendered.pop(), path.read_bytes()) == ((), before)
    (changed.tfds_folder("groups") / "dataset_info.json").unlink()
    run(folder, out, views=("groups", "documents"), group_size=2)
    assert rendered.pop() == ("groups",)
    # Killed when the rows were there and the manifest not: it does not speak of other rows.
    written = Manifest.write

    def killed(manifest: Manifest, where: Path) -> None:
        if "groups" in manifest.views:
            raise KeyboardInterrupt
        written(manifest, where)

    monkeypatch.setattr(Manifest, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, views=("groups", "documents"), group_size=3)
    assert not (changed.folder / "unfinished").exists()
    monkeypatch.setattr(Manifest, "write", written)
    back = run(folder, out, views=("groups", "documents"), group_size=2)
    assert back.manifest.views["groups"] == changed.manifest.views["groups"]
    assert back.num_rows("groups")["train"] == 16
    # Broken data take nothing away.
    counted = ("co_occurrence.npz", "ease.npz")
    events = folder / "events.parquet"
    table = pq.read_table(events)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), events)
    with pytest.raises(DataError, match="are the same event"):
        run(folder, out, views=("groups",))
    assert all((back.folder / name).exists() for name in (*counted, EVENTS))
    # Other data: nothing that was there before counts.
    write_shop(log(per_user=11))
    prepared = run(folder, out, views=("groups",))
    assert set(prepared.manifest.views) == {"groups"}
    assert not any((prepared.folder / name).exists() for name in counted)
    with pytest.raises(DataError, match=r"is missing; .* with the view 'next_items'"):
        prepared.co_occurrence()
    assert prepared.manifest.counts["events"] == {"train": 32, "validation": 4, "test": 8}
    (prepared.folder / MANIFEST).write_text("{", encoding="utf-8")
    assert run(folder, out, views=("groups",)).manifest == prepared.manifest
    assert Prepared.open(out, "shop", "per_user_temporal").manifest == prepared.manifest


def test_what_a_derived_split_starts_from_is_another_source(write_shop, tmp_path: Path) -> None:
    sources = []
    for train in (0.7, 0.8):
        folder = write_shop(log(), splits={"per_user_temporal": {"train": train}})
        prepared = run(folder, tmp_path / "out", "few_shot:n=6", views=("documents",))
        sources.append((prepared.manifest.source, prepared.manifest.counts["events"]))
    assert sources[0][0] != sources[1][0]
    assert [events["context"] for _, events in sources] == [22, 26]


def test_views_of_candidates_need_a_template_of_them(write_shop, tmp_path: Path) -> None:
    template = {"event": "{title}", "item": "{title}", "candidate": ""}
    folder, out = write_shop(log(), template=template), tmp_path / "out"
    prepared = run(folder, out, views=("next_items", "documents"))
    targets = [row["target"] for row in rows_of(prepared, "documents", "train")]
    assert "Thing 0. Thing 1. Thing 2. Thing 3." in targets  # each by itself, as in retrieval
    with pytest.raises(DataError, match=r"view 'groups' is not"):
        train_on_prepared(out, "shop")
    with pytest.raises(DataError, match="'candidate' is empty"):
        run(folder, out, views=("groups",))


def test_purchases_get_sampled_negatives(write_shop, tmp_path: Path) -> None:
    folder = write_shop(log(per_user=6), labelled=False)
    prepared = run(folder, tmp_path / "out", views=("groups",), group_size=10)
    rows = rows_of(prepared, "groups", "*")
    eligible = sampled = 0
    for row in rows:
        positives = row["item_indices"][::5]
        history = {int(text.split(",")[0].split()[-1]) for text in row["history"][1:-1]}
        assert len(row["labels"]) == 5 * len(positives) <= 10
        assert all(math.isnan(rating) for rating in row["ratings"])
        for start in range(0, len(row["labels"]), 5):
            assert row["labels"][start : start + 5] == [1, 0, 0, 0, 0]
            negatives = row["item_indices"][start + 1 : start + 5]
            assert len(set(negatives)) == 4
            assert not set(negatives) & {*positives, *history}
        eligible += len(positives) * (12 - len({*positives, *history}))
        sampled += 4 * len(positives)
    rates = prepared.manifest.views["groups"].negatives
    assert rates["sampling_rate"] == pytest.approx(sampled / eligible)
    again = run(folder, tmp_path / "again", views=("groups",), group_size=10)
    other = run(folder, tmp_path / "other", views=("groups",), group_size=10, negative_power=3.0)
    # As JSON, where one missing rating (NaN) equals another.
    texts = [json.dumps(rows_of(found, "groups", "*")) for found in (prepared, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_negatives_by_popularity() -> None:
    counts = np.zeros(50)
    counts[7:9] = 100

    def share(power: float) -> float:
        sampler = NegativeSampler(50, power)
        cumulative = np.cumsum(sampler.weights(counts))
        drawn = [sampler.draw(cumulative, str(n), [8], [], [], 1)[0][0] for n in range(300)]
        assert 8 not in drawn
        return drawn.count(7) / 300

    assert share(0.0) == pytest.approx(1 / 49, abs=0.03)
    assert share(1.0) == pytest.approx(101 / 149, abs=0.08)
    # Whoever acted on nearly everything gets what is left.
    sampler = NegativeSampler(50, 1.0, never=[48, 49])
    counts[1:46] = 1e9
    cumulative = np.cumsum(sampler.weights(counts))
    for key in "abcdefgh":
        assert sorted(sampler.draw(cumulative, key, [0], range(1, 46), [], 5)[0]) == [46, 47]


@pytest.mark.parametrize("rate", [0.1, 1.8])
def test_correction_undoes_the_sampling(rate: float) -> None:
    """A tenth of the negatives, or all of them and most of them twice."""
    truth = np.linspace(0.01, 0.3, 50)
    # Of all rows that a model reads, so many are positive.
    predicted = truth / (truth + (1 - truth) * rate)
    assert corrected_probability(predicted, rate) == pytest.approx(truth)


def test_errors(write_shop, tmp_path: Path) -> None:
    folder, out = write_shop(log()), tmp_path / "out"
    for option in ({"views": "groups"}, {"group_size": 0}, {"negative_power": 1e9}):
        with pytest.raises(ConfigError, match=rf"PrepareOptions\.{next(iter(option))}"):
            PrepareOptions(**option)
    titles = {"event": "{title}", "item": "{title}"}
    small = write_shop(log(per_user=2), folder="small")
    liked = write_shop([(*event[:3], 5.0) for event in log()], folder="liked")
    wrong, gaps = (
        write_shop(log(), folder=name, template={**titles, "candidate": f"{{title}} {{{field}}}"})
        for name, field in (("wrong", "item_cuont"), ("gaps", "maker"))
    )
    empty = {"template": {"item": "[{maker}]"}}
    for where, options, error, message in (
        (folder, {"views": ("group",)}, DataError, r"'group' \(did you mean 'groups'"),
        (small, {}, DataError, "'per_user_temporal': part 'validation' is empty"),
        (wrong, {}, ConfigError, r"wrong/dataset\.json.*item_cuont.*item_count"),
        (gaps, {}, DataError, r"item 'i\d+'.*maker"),
        (folder, empty, DataError, r"dataset\.json: .* nothing of \d+ items, .*'i\d+'"),
        (liked, {}, DataError, r"liked/dataset\.json: every value is positive"),
    ):
        with pytest.raises(error, match=message):
            run(where, out, **options)
    assert not list(out.glob("recommender_text/*"))
    prepared = run(folder, out, views=("documents",))
    with pytest.raises(DataError, match=r"'groups' is not prepared \(prepared: documents\)"):
        prepared.num_rows("groups")
    with pytest.raises(DataError, match=r"did you mean 'shop\.per_user_temporal'"):
        Prepared.open(out, "shop", "per_user_tempral")
    (prepared.folder / "catalogue.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"catalogue\.parquet"):
        prepared.catalogue()
    (prepared.folder / "prepare.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Prepared.open(out, "shop", "per_user_temporal")
