"""Data sets, reports and prepared data in buckets: etils and fsspec as they are, over memory."""

import json
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import gin
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from m6rec_jax import cli
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io import buckets

SHOP = Path(__file__).parents[1] / "data" / "shop"
NAMES = ("corner-shop", "per_user_temporal")


class Memory(MemoryFileSystem):
    """What fsspec has for memory, under addresses of Google's buckets."""

    protocol = ("gs", "gcs")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    written: ClassVar = []
    fails_at = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def _open(self, path, mode="rb", **options):
        if mode == "wb":
            if self.fails_at is not None and self.fails_at in path:
                raise OSError("403: no storage.objects.create")
            self.written.append(path)
        return super()._open(path, mode, **options)


@pytest.fixture
def memory(monkeypatch):
    """The file system of gs:// addresses."""
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(Memory, "fails_at", None)
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Memory)
    epath.backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    Memory.store.clear()
    Memory.pseudo_dirs[:] = [""]
    Memory.written.clear()
    gin.clear_config()
    yield Memory(finalize_on_close=True)
    gin.clear_config()
    epath.backend._FileSystemSpecBackend._get_filesystem.cache_clear()


def put(folder, address):
    """Copies the files of a folder to an address."""
    for path in folder.iterdir():
        epath.Path(address).mkdir(parents=True, exist_ok=True)
        (epath.Path(address) / path.name).write_bytes(path.read_bytes())


def tree(folder):
    """Content of all files below a folder or address."""
    found = {}
    for path in folder.iterdir():
        if path.is_dir():
            found |= {f"{path.name}/{name}": content for name, content in tree(path).items()}
        else:
            found[path.name] = path.read_bytes()
    return found


def test_check_of_a_bucket_is_that_of_a_folder(memory, tmp_path, capsys):
    shop = Path(shutil.copytree(SHOP, tmp_path / "shop"))
    with (shop / "events.csv").open("a") as file:
        file.write("nobody,0001,2024-05-01T10:00:00Z,5\n")
    put(shop, "gs://own/shop")
    said = []
    for folder, out in ((shop, tmp_path), ("gs://own/shop", "gs://own/out")):
        options = ["--clean", f"{out}/clean", "--json", f"{out}/report.json"]
        assert cli.main(["data", "check", str(folder), *options]) == 0  # all is set aside
        printed = capsys.readouterr()
        said.append(printed.out.replace(str(out), "OUT"))
    assert said[0] == said[1]
    assert cli.main(["data", "check", "gs://own/shop"]) == 2
    assert "gs://own/shop has errors" in capsys.readouterr().err
    assert tree(epath.Path("gs://own/out/clean")) == tree(tmp_path / "clean")
    assert memory.written[-1].endswith("clean/dataset.json"), "last: then it is whole"
    report = json.loads(epath.Path("gs://own/out/report.json").read_text())
    assert report["clean"] == "gs://own/out/clean"


def test_what_is_prepared_in_a_bucket_is_what_is_prepared_in_a_folder(memory, tmp_path, capsys):
    put(SHOP, "gs://own/shop")
    prepare(SHOP, tmp_path, progress=False)
    command = ["data", "prepare", "gs://own/shop", "--gin.data_dir.path='gs://own/out'"]
    assert cli.main([*command, "--gin.prepare.progress=False"]) == 0
    assert capsys.readouterr().out == "gs://own/out/corner-shop.per_user_temporal\n"
    assert tree(epath.Path("gs://own/out")) == tree(tmp_path)
    here, there = Prepared.open(tmp_path, *NAMES), Prepared.open("gs://own/out", *NAMES)
    assert there.manifest == here.manifest
    assert there.catalogue().texts == here.catalogue().texts
    assert str(there.tfds_folder("groups")).startswith("gs://own/out/recommender_text/")
    # The same again writes nothing but the trial; other options, what they change.
    memory.written.clear()
    prepare(SHOP, "gs://own/out", progress=False)
    assert len(memory.written) == 1
    prepare(SHOP, "gs://own/out", options=PrepareOptions(group_size=20), progress=False)
    shards = {Path(path).parent.parent.name for path in memory.written if "tfrecord" in path}
    assert shards == {"corner-shop.per_user_temporal.groups"}
    assert memory.written[-1].endswith("per_user_temporal/prepare.json")


def test_a_copy_that_was_broken_off_counts_as_not_prepared(memory, monkeypatch):
    prepare(SHOP, "gs://own/out", progress=False)
    before = tree(epath.Path("gs://own/out"))
    monkeypatch.setattr(Memory, "fails_at", "groups")
    with pytest.raises(DataError, match=r"gs://own/out/.*groups.* cannot be written: OSError: 403"):
        prepare(SHOP, "gs://own/out", options=PrepareOptions(group_size=20), progress=False)
    with pytest.raises(DataError, match="holds no prepared 'corner-shop"):
        Prepared.open("gs://own/out", *NAMES)
    monkeypatch.setattr(Memory, "fails_at", None)
    prepare(SHOP, "gs://own/out", progress=False)
    assert tree(epath.Path("gs://own/out")) == before
    monkeypatch.setattr(Memory, "fails_at", "own")  # said before the work
    with pytest.raises(DataError, match=r"own/out cannot be written: OSError: 403.*credentials"):
        prepare(SHOP, "gs://own/out", progress=False)


def test_a_missing_package_and_an_unknown_address_are_named(monkeypatch):
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    with (
        pytest.raises(DataError, match=r"s3://own/x cannot be read: ImportError: .*s3fs"),
        buckets.bucket_copies() as copies,
    ):
        copies.fetch("s3://own/x")
    with pytest.raises(ConfigError, match="memory://x: no address of a bucket begins so"):
        buckets.path_of("memory://x")
