"""The benchmark of the documented path runs what the page says."""

from benchmarks import own_shop
from benchmarks.documented_path import commands_of
from m6rec_jax import cli


def test_the_commands_are_those_of_the_page_with_other_names() -> None:
    page = commands_of(*own_shop.PAGE)
    assert [command[1] for command in page[:4]] == ["data", "data", "vocab", "train"]
    assert ["m6rec", "calibrate", "--gin.MODEL_DIR=runs/retrieval"] in page
    found = [own_shop.with_names(command, "shop", 2) for command in page]
    words = [word for command in found for word in command]
    assert not [word for word in words if "corner-shop" in word or word == "FOLDER"]
    assert "--gin.MODEL_DIR=runs/foundation" in words
    assert "--gin.MODEL_DIR=runs/scoring-2" in words
    assert "--gin.INITIAL_CHECKPOINT_PATH=runs/foundation" in words
    for command in found:
        assert command[0] == "m6rec"
        cli._parser().parse_known_args(command[1:])
        assert ("--gin.train.seed=2" in command) == (command[1] == "train")


def test_rows_have_repeats_and_new_items_apart_and_the_baselines() -> None:
    names = ("hit_rate@10", "repeats/hit_rate@10", "new_items/hit_rate@10")
    models = ("", "popularity/", "user_item_times/", "two_towers/")
    metrics = {model + name: n / 10 for n, model in enumerate(models) for name in names}
    rows = own_shop.rows_of("retrieval", metrics, 1)
    assert [(row["seed"], row["metric"], row["value"]) for row in rows] == [
        (seed, name, value)
        for seed, value in ((1, 0.0), (None, 0.1), (None, 0.2), (1, 0.3))
        for name in names
    ]
    assert [rows[n]["model"] for n in (0, 9)] == [f"{own_shop.MODEL}; hybrid", own_shop.MODEL]
