"""Container file and manifests name what the code has: flags, settings, routes, metrics, times.

There is no cluster here. Overlays are put together by the few rules of kustomize that they use, and
checked against the schemas of Kubernetes where the package kubernetes-validate is installed.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from m6rec_jax import cli, configuration
from m6rec_jax.commands import answering, arguments
from m6rec_jax.server.app import make_app
from m6rec_jax.server.metrics import Metrics
from m6rec_jax.server.snapshots import Server

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())


def merged(old: Any, new: Any) -> Any:
    """A strategic merge: objects by field, null removes, lists of named entries by name."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
        return {key: value for key, value in found.items() if value is not None}
    if isinstance(old, list) and isinstance(new, list) and all("name" in one for one in new):
        by_name = {one["name"]: one for one in old}
        for one in new:
            by_name[one["name"]] = merged(by_name.get(one["name"]), one)
        return list(by_name.values())
    return merged({}, new) if isinstance(new, dict) and old is None else new


def build(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What `kustomize build` makes of a folder, as far as these files go, by kind and name."""
    return _build(folder, {})


def _build(folder: Path, found: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    own = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "components", "patches", "images", "labels"}
    assert set(own) <= known
    for name in own.get("resources", []):
        if (folder / name).is_dir():
            _build(folder / name, found)
            continue
        for document in yaml.safe_load_all((folder / name).read_text()):
            found[document["kind"], document["metadata"]["name"]] = document
    for name in own.get("components", []):
        _build(folder / name, found)
    for patch in own.get("patches", []):
        if "path" in patch:
            change = yaml.safe_load((folder / patch["path"]).read_text())
            target = change["kind"], change["metadata"]["name"]
            found[target] = merged(found[target], change)
        else:
            target = patch["target"]["kind"], patch["target"]["name"]
            for step in yaml.safe_load(patch["patch"]):
                assert (step["op"], step["path"][-2:]) == ("add", "/-")
                place = found[target]
                for part in step["path"].split("/")[1:-1]:
                    place = place[int(part) if part.isdigit() else part]
                place.append(step["value"])
    for labels in own.get("labels", []):
        assert labels["includeSelectors"]
        for document in found.values():
            add_labels(document, labels["pairs"])
    return found


def add_labels(document: dict[str, Any], pairs: dict[str, str]) -> None:
    spec = document["spec"]
    if document["kind"] == "Deployment":
        spec["selector"] = {"matchLabels": dict(pairs)}
        spec["template"].setdefault("metadata", {})["labels"] = dict(pairs)
    elif document["kind"] == "PodDisruptionBudget":
        spec["selector"]["matchLabels"] |= pairs  # one that is there, as kustomize does
    elif document["kind"] == "Service":
        spec["selector"] = dict(pairs)


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """Those that answer GET of a server that is loading."""
    server = Server()
    client = TestClient(make_app(server))
    server.scheduler.close(1)
    paths = client.get("/openapi.json").json()["paths"]
    return {path for path, methods in paths.items() if "get" in methods}


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_fit_the_code(
    name: str, routes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = build(KUBERNETES / "overlays" / name)
    deployment = found["Deployment", "m6rec-serve"]["spec"]["template"]["spec"]
    (container,) = deployment["containers"]

    # The command line is read as the command reads it, gin settings included.
    entry = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    program, *words = [*yaml.safe_load(entry[1]), *container["args"]]
    assert program == "m6rec"
    # The run is in the container.
    for module in (answering, arguments):
        monkeypatch.setattr(module, "existing_path", Path)
    parser = cli._parser()
    args, rest = parser.parse_known_args(words)
    bindings = cli._gin_bindings(rest, parser)
    files = ["gin_configs/commands/serve.gin", *(args.gin_file or ())]
    configuration.parse_config(files, bindings)
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = configuration.bound("serve.grace")
    assert deployment["terminationGracePeriodSeconds"] >= sleep + grace + 5
    assert (configuration.bound("serve.rules") is not None) == (name == "tpu")

    # Paths are volumes, and what is written can be.
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {
        volume["name"] for volume in deployment["volumes"]
    }
    assert all(len(volume) == 2 for volume in deployment["volumes"])  # a name and one source
    folders = [args.folder, args.bank, Path(args.index[0]), args.read_token_file]
    for path in [*folders, args.admin_token_file, Path(configuration.macro("PREPARED"))]:
        assert mounts[f"/{path.parts[1]}"]["readOnly"], path
    for path in re.findall(r"(?:M6REC_DATA_DIR|JAX_COMPILATION_CACHE_DIR)=(\S+)", DOCKERFILE):
        assert "readOnly" not in mounts[f"/{Path(path).parts[1]}"]
    keys = {args.read_token_file.name, args.admin_token_file.name}

    # Ports and probes.
    (port,) = container["ports"]
    assert port["containerPort"] == args.port
    assert found["Service", "m6rec-serve"]["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in routes
        assert container[probe]["httpGet"]["port"] == port["name"]

    # Metrics, and who reads them.
    scaler = found["HorizontalPodAutoscaler", "m6rec-serve"]["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) in found
    metric = scaler["metrics"][0]["pods"]["metric"]["name"].split("|")[1]
    metrics = Metrics(lambda: 0, lambda: True)
    assert metric in {family.name for family in metrics.registry.collect()}
    monitoring = found["PodMonitoring", "m6rec-serve"]["spec"]
    labels = found["Deployment", "m6rec-serve"]["spec"]["template"]["metadata"]["labels"]
    assert monitoring["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitoring["endpoints"]
    assert (endpoint["port"], endpoint["path"] in routes) == (port["name"], True)
    assert endpoint["authorization"]["credentials"]["secret"]["key"] in keys


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_fit_the_schemas(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for (kind, _), document in build(KUBERNETES / "overlays" / name).items():
        if kind != "PodMonitoring":  # Google's own
            validate.validate(document, validate.latest_version(), strict=True)


def test_every_overlay_is_an_image_of_the_container_file() -> None:
    cases = dict(re.findall(r"^ +(\w+)\) extras=(\S+) ;;", DOCKERFILE, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in cases.values():
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    tags = set()
    for name in OVERLAYS:
        text = (KUBERNETES / "overlays" / name / "kustomization.yaml").read_text()
        (image,) = yaml.safe_load(text)["images"]
        assert image["name"] == image["newName"] == "m6rec-serve"
        tags.add(image["newTag"])
    assert tags == set(cases)
    # Bases are named without a registry.
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"python:3.11-slim"}
    # What is left out is what the package asks for; `test_command` sees that it is not imported.
    lines = (ROOT / "deploy" / "serving-overrides.txt").read_text().splitlines()
    left_out = {line.partition(";")[0] for line in lines if not line.startswith("#")}
    required = {re.split(r"[\[<>=]", one)[0] for one in project["dependencies"]}
    assert left_out <= required
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text()
    for path in re.findall(r"(?:--override|--constraint) (\S+)", DOCKERFILE):
        assert f"!{path}\n" in ignored
        assert (ROOT / path).is_file()
