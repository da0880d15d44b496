"""Starts the shim on the model's Python: `PYTHON -P bootstrap.py ARGUMENTS`, those of `shim.main`.

That Python may be another one than gusset's, with libraries of its own. So only
the package `gusset` is made importable there, from the folder that this file is
in: not what is installed beside it, and not by a variable such as PYTHONPATH, which
the model's own processes would inherit.

Processes that `multiprocessing` starts anew run this file too, as `__mp_main__`.
"""

import importlib.util
import os.path
import sys


def make_gusset_importable() -> None:
    """Put the package into `sys.modules`; its modules are found by its path from then on."""
    # Without pathlib, which takes longer to import than all of this.
    folder = os.path.abspath(__file__)  # noqa: PTH100
    for _ in ("bootstrap.py", "worker", "serving"):
        folder = os.path.dirname(folder)  # noqa: PTH120
    spec = importlib.util.spec_from_file_location(
        "gusset",
        os.path.join(folder, "__init__.py"),  # noqa: PTH118
        submodule_search_locations=[folder],
    )
    assert spec and spec.loader  # noqa: S101  # it is a Python file
    package = importlib.util.module_from_spec(spec)
    sys.modules["gusset"] = package
    spec.loader.exec_module(package)


if "gusset" not in sys.modules:
    make_gusset_importable()

if __name__ == "__main__":
    from gusset.serving.worker.shim import main

    sys.exit(main(sys.argv[1:]))
