"""A folder that a server is started with: a run, its bank, an index, the data of the films."""

import json
import shutil
from pathlib import Path
from typing import Any

from m6rec_jax.bank.export import add_prompts
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.sharding import LogicalRules
from tests.serving import served_films


def request(number: int) -> dict[str, Any]:
    """A request without fields of the caller's own, which no route has."""
    row = served_films.request(number)
    return {name: value for name, value in row.items() if name != "number"}


TASKS = ["ctr", "next", "titles", "contents", "plausible", "talk_titles", "talk_replies"]


def write(served: Path, folder: Path) -> Path:
    """Writes run, data, bank and index."""
    run = served_films.copy_run(served / "run", folder / "run", TASKS)
    settings = json.loads((run / "inference" / "settings.json").read_text())
    settings["tasks"]["stars"] = settings["tasks"]["ctr"] | {
        "task_id": 1,
        "positive_classes": [2],
        "prepared": "stars.by_time",  # so that one scorer stands beside `next`
    }
    settings["tasks"]["reasons"] = settings["tasks"]["titles"] | {"writing": "explanations"}
    (run / "inference" / "settings.json").write_text(json.dumps(settings))
    datasets = run / "inference" / "datasets"
    shutil.copy(datasets / f"{served_films.PREPARED}.json", datasets / "stars.by_time.json")
    data = served_films.write_data(folder / "data")
    served_films.write_co_occurrence(data)
    add_prompts(folder / "bank", run)
    build_index(folder / "index", run, bank=str(folder / "bank"), task="next", prepared=str(data))
    return folder


def open_service(folder: Path, rules: LogicalRules = (), **changes: Any) -> Service:
    """Serves the bank's tasks."""
    shapes: dict[str, Any] = {"prepared": str(folder / "data"), "index": str(folder / "index")}
    options = ServiceOptions(**(shapes | {"batch_sizes": (1, 8), "continuous": True} | changes))
    return Service.open(folder / "run", bank=folder / "bank", rules=rules, options=options)


def make_server(service: Service | None, **options: Any) -> Server:
    """A server that is ready, or without a service one that is still loading."""
    server = Server(["title_recommendation"], **options)
    if service is not None:
        server.start(service)
    return server
