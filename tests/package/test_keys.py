"""The table of keys, the schema and docs/config.md agree."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from gusset.package.base_model import Section
from gusset.package.config import json_schema
from gusset.package.keys import KEYS
from gusset.package.schema import TrussConfig
from gusset.package.storage import CachedRepo
from gusset.package.trt_llm import EngineV1, EngineV2

DOCS = Path(__file__).parents[2] / "docs" / "config.md"

# Keys that a file may have and no model has as a field: old names and what is computed.
OLD = {"hf_cache", "runtime.num_workers", "resources.use_gpu", "trt_llm.runtime.gated_features"}


def models_in(annotation: object) -> Iterator[tuple[type[BaseModel], bool]]:
    """Models that an annotation names, each with whether it stands in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return  # its keys are the author's
    for argument in arguments if origin in (list, typing.Union, types.UnionType, typing.Annotated) else ():
        for model, listed in models_in(argument):
            yield model, listed or origin is list


def paths_of(model: type[BaseModel], prefix: str, above: tuple[type[BaseModel], ...] = ()) -> Iterator[str]:
    """Paths of all fields below a model; a model inside itself is not followed."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner, listed in models_in(field.annotation):
            if (
                inner.__name__ != "Accelerator"
                and inner not in (*above, model)
                and issubclass(inner, Section)
            ):
                yield from paths_of(inner, f"{prefix}{name}{'[]' if listed else ''}.", (*above, model))


def schema_paths() -> set[str]:
    paths = set(paths_of(TrussConfig, ""))
    for engine in (EngineV1, EngineV2):
        paths |= set(paths_of(engine, "trt_llm."))
    # A speculator holds the build and runtime of another engine, whole.
    engines = ("trt_llm.build.speculator.build.", "trt_llm.build.speculator.runtime.")
    within_itself = {path for path in paths if path.startswith(engines)}
    cached = {f"hf_cache[].{name}" for name in CachedRepo.model_fields}
    return (paths - within_itself) | cached | OLD


def test_every_key_of_the_schema_is_in_the_table() -> None:
    """The table explains every key of the schema, and no other."""
    table = {key.path for key in KEYS}

    assert len(table) == len(KEYS)
    assert schema_paths() - table == set()
    assert table - schema_paths() == set()


def row_of(path: str, status: str, about: str) -> str:
    return f"| `{path}` | {status} | {about} |"


def test_the_document_shows_the_table() -> None:
    """docs/config.md has exactly one row for each key, with its status and explanation."""
    lines = [line for line in DOCS.read_text().split("## All keys")[1].splitlines() if line.startswith("| `")]

    assert lines == [row_of(key.path, key.status, key.about) for key in KEYS]


@pytest.mark.parametrize("path", [key.path for key in KEYS if "." not in key.path and key.path != "hf_cache"])
def test_the_json_schema_describes_every_key(path: str) -> None:
    """Editors show the description of each top-level key."""
    assert json_schema()["properties"][path]["description"]
