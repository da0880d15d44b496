"""The project's own example on Ray: a fill-mask model from a gated repository, on two nodes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import leaks_in
from tests.examples import hub as hubs
from tests.examples.conftest import VARIANTS, make_token
from tests.examples.environments import CURRENT, Unavailable, tiny_bert
from tests.ray.conftest import OBJECT_STORE, Secrets, contents_below, running_cluster

pytestmark = pytest.mark.torch


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the example asks for Python 3.11, as Ray's cluster"
)
@pytest.mark.skipif(not CURRENT.ready, reason=CURRENT.reason)
def test_the_token_reaches_a_fill_mask_model_on_two_nodes(secrets: Secrets, tmp_path: Path) -> None:
    """The hub serves the weights only to who shows the token; both replicas have loaded them and respond."""
    try:
        weights = tiny_bert()
    except Unavailable as error:
        pytest.skip(str(error))
    token = make_token()
    secrets.gusset("secret", "set", "hf_access_token", input=token)
    folder = Path(shutil.copytree(VARIANTS["token"].folder, tmp_path / "fill-mask"))
    packages = next((CURRENT.python.parents[1] / "lib").glob("python3*/site-packages"))
    with hubs.serving(hubs.Hub(VARIANTS["token"].repo_id, weights, token)) as hub:
        variables = {
            "PYTHONPATH": str(packages),  # as in an image of the cluster that has the packages
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "huggingface"),
            "OMP_NUM_THREADS": "1",
        }
        with running_cluster(cpus=1) as cluster:
            cluster.nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
            from gusset.ray import application

            cluster.run(
                filled=application(
                    folder,
                    manager=secrets.manager.address,
                    token_file=secrets.token("Fill mask", "hf_access_token"),
                    env="current",
                    num_replicas=2,
                    max_replicas_per_node=1,
                    ray_actor_options={"runtime_env": {"env_vars": variables}},
                )
            )
            url = f"{cluster.url}/filled/predict"
            sentence = "The capital of France is [MASK]."
            responses = [httpx.post(url, json=sentence, trust_env=False, timeout=60) for _ in range(8)]
            shown = secrets.gusset("deployment", "show", "Fill mask", "--output", "json").stdout
            logs = contents_below(cluster.folder / "ray")
            assert not any(leaks_in(content, token) for content in logs.values())
    assert [replica["live"] for replica in json.loads(shown)["replicas"]] == [True, True]
    assert {response.status_code for response in responses} == {200}
    assert all("[MASK]" not in each["sequence"] for response in responses for each in response.json())
