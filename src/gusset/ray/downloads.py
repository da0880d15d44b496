"""What the model needs before `load`, downloaded by the replica."""

# Imports in functions: most models download nothing.

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gusset.secrets.masking import Masker
from gusset.serving.deployment import ModelDeployment


@contextlib.contextmanager
def downloaded(
    deployment: ModelDeployment, values: Mapping[str, bytes], masker: Masker, cache: Path
) -> Iterator[None]:
    """Download what the deployment needs, and keep it in use until the context ends. Blocks.

    `values` are those to log in with.

    Raises:
        ConfigInvalid: a source does not have what the config names, or a library is missing.
        SecretsMissing, Denied, Unreachable, Conflict, HostError: a download or a mount failed.
    """
    if not deployment.downloads:
        yield
        return
    from gusset.weights.cache import WeightsCache
    from gusset.weights.download import FetchRequest
    from gusset.weights.fetching import FetchOptions, FetchProcess, fetch_environment
    from gusset.weights.mounts import Mounts

    store = WeightsCache.open(cache)
    mounted = {each.mount: each for each in deployment.downloads if each.mount is not None}
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, store.hold())
        mounts = Mounts(store)
        stack.callback(mounts.close)
        for download in mounted.values():
            mounts.check(download)
        request = FetchRequest(
            downloads=deployment.downloads,
            values=values,
            cache=cache,
            data_dir=deployment.data_dir or deployment.folder / "data",
            readable=False,
        )
        options = FetchOptions(masker=masker, errors=2, debuggable=False)
        process = FetchProcess.start(request, options, fetch_environment(deployment.environment_variables))
        stack.callback(process.kill)
        process.wait_for_external_data()
        for mount, folder in process.wait().items():
            mounts.mount(mounted[mount], folder)
        yield
