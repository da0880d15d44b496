"""Our own OpenAPI document against the running manager: whatever it allows is answered as it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.manager.conftest import Manager

REPO = Path(__file__).parents[2]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_operation_answers_as_the_document_says(manager: Manager) -> None:
    """Generated requests, right and wrong ones, with an administrator's key; and the log of it holds."""
    with manager.client() as client:
        document = client.get("/v1/spec").json()
    document["servers"] = [{"url": manager.address}]
    del document["paths"]["/v1/deployment/changes"]  # it never ends
    schema = schemathesis.openapi.from_dict(document)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=15, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.seed(7)
        @hypothesis.given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            answer = case.call(
                base_url=manager.address, headers={"authorization": f"Bearer {manager.key}"}, timeout=30
            )
            case.validate_response(answer, checks=CHECKS)

        check()
        tried += 1
    assert tried > 40
    manager.gusset("audit", "verify")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_method_that_a_route_does_not_take(manager: Manager, method: str) -> None:
    with manager.client() as client:
        answer = client.request(method, "/v1/secrets")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_the_documents_are_made_of_the_document(manager: Manager) -> None:
    """docs/api.md is what `scripts/api-docs` makes of it; GUSSET_WRITE_DOCS=1 writes it."""
    with manager.client("") as client:
        spec = client.get("/v1/spec").content
    made = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "api-docs")], input=spec, capture_output=True, check=True
    ).stdout
    page = REPO / "docs" / "api.md"
    if os.environ.get("GUSSET_WRITE_DOCS") == "1":
        page.write_bytes(made)
    assert page.read_bytes() == made, (
        "make it anew: GUSSET_WRITE_DOCS=1 pytest tests/manager/test_document.py"
    )
