"""Work by processes of Ray: its order, each piece once, whatever dies. `make ray` runs it."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax.errors import ConfigError, DataError, M6RecError
from m6rec_jax.io.workers import Processes, RayWorkers, Threads, fitting
from m6rec_jax.serving.batch_inference import infer_requests
from tests.serving import served_films

NEEDS_RAY = "needs the extra ray: make ray"


def made(folder: str) -> Path:
    return Path(folder)


def square(folder: Path, number: int) -> int:
    """Kills its process the first time that it sees 7, and the second."""
    if number < 0:
        raise DataError(f"{number} is below 0")
    for deaths in ("1", "2"):
        if number == 7 and not (folder / deaths).exists():
            (folder / deaths).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.fixture
def ray_workers(tmp_path: Path) -> Callable[[], RayWorkers[Path]]:
    pytest.importorskip("ray", reason=NEEDS_RAY)
    return lambda: RayWorkers("a test", functools.partial(made, str(tmp_path)))


def test_threads_keep_the_order() -> None:
    workers = Threads(Path())
    assert list(workers.map(square, range(7))) == [n**2 for n in range(7)]
    assert list(workers.map(square, [])) == []
    with pytest.raises(DataError, match="-1 is below 0"):
        list(workers.map(square, [1, -1, 2]))


def test_processes_of_this_machine() -> None:
    with Processes(functools.partial(made, ""), 2) as workers:
        assert list(workers.map(square, range(5))) == [n**2 for n in range(5)]
        result = workers.begin(square, 6)
        with pytest.raises(DataError, match="-1 is below 0"):
            list(workers.map(square, [1, -1]))
        assert result() == 36
        with pytest.raises(M6RecError, match="died; memory may be short"):
            list(workers.map(square, [13]))


def test_processes_that_die_lose_nothing(ray_workers: Any) -> None:
    with ray_workers() as workers:
        numbers = [*range(12), *range(14, 40)]
        assert list(workers.map(square, iter(numbers))) == [n**2 for n in numbers]
        with pytest.raises(DataError, match=r"^-1 is below 0$"):
            workers.begin(square, -1)()
        with pytest.raises(M6RecError, match=r"died 4 times on the same piece"):
            list(workers.map(square, [13]))


def test_a_cluster_without_room() -> None:
    assert fitting({"GPU": 2}, [{"CPU": 8.0, "GPU": 5.0}, {"GPU": 1.0}]) == 2
    with pytest.raises(ConfigError, match=r"resources = {'GPU': 2}, and its nodes have .*'CPU': 8"):
        fitting({"GPU": 2}, [{"CPU": 8.0}])


def test_files_are_the_same_by_ray(served: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason=NEEDS_RAY)
    rows = [served_films.request(number) for number in range(40)]
    rows[7] |= {"time": "then"}
    requests = served_films.write_rows(tmp_path / "requests.jsonl", rows)
    with requests.open("a") as file:
        file.write("{half a row\n")
    settings: dict[str, Any] = {"prepared": str(served / "cache" / served_films.PREPARED)}
    settings |= {"model_dir": served / "run", "batch_size": 4, "progress": False}
    for engine in ("process", "ray"):
        folder = tmp_path / engine
        scores = settings | {"task": "ctr", "chunk_size": 10, "engine": engine}
        infer_requests(requests, folder / "out.jsonl", **scores)
    for name in ("out.jsonl", "out.rejected.jsonl"):
        plain, by_ray = (tmp_path / engine / name for engine in ("process", "ray"))
        assert plain.read_bytes() == by_ray.read_bytes()
