"""The OpenAPI document against the server: what it says is what happens."""

from fastapi.testclient import TestClient


def test_documentation_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    files = [part.split('"')[0] for part in page.split('="/docs-files')[1:]]
    assert files
    for file in files:
        assert client.get(f"/docs-files{file}").status_code == 200


def test_examples_are_answered(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    asked = 0
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        name = schema.rpartition("/")[2]
        for body in document["components"]["schemas"].get(name, {}).get("examples", []):
            assert client.post(path, json=body).status_code == 200, (path, body)
            asked += 1
    assert asked >= 10
