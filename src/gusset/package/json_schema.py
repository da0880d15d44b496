"""The JSON Schema of `config.yaml`, for editors, with what gusset does with each key."""

from __future__ import annotations

from typing import Any

from gusset.package import keys
from gusset.package.schema import ACCELERATORS, TrussConfig
from gusset.package.trt_llm import EngineV1, EngineV2

_PREFIXES = {
    "supported": "",
    "ignored": "No effect in gusset: ",
    "images": "Only for custom images: ",
    "refused": "`gusset serve` refuses it: ",
}


def make() -> dict[str, Any]:
    """A draft 2020-12 schema. It accepts more than the loader, which also checks rules between keys."""
    schema = TrussConfig.model_json_schema(ref_template="#/$defs/{model}")
    defs = schema.setdefault("$defs", {})
    engines = []
    for name, model in (("TrtLlmV1", EngineV1), ("TrtLlmV2", EngineV2)):
        part = model.model_json_schema(ref_template=f"#/$defs/{name}/$defs/{{model}}")
        defs[name] = part
        engines.append({"$ref": f"#/$defs/{name}"})
    properties = schema["properties"]
    properties["trt_llm"] = {"anyOf": [*engines, {"type": "null"}], "default": None}
    properties["secrets"] = {
        "anyOf": [{"type": "object", "additionalProperties": {"type": "null"}}, {"type": "null"}],
        "default": {},
    }
    properties["environment_variables"]["additionalProperties"] = True  # every value is converted to a text
    defs["Resources"]["properties"]["accelerator"] = {
        "anyOf": [
            {"type": "string", "pattern": rf"^\s*({'|'.join(ACCELERATORS)})(:[0-9:]+)?\s*$"},
            {"$ref": "#/$defs/Accelerator"},
            {"type": "null"},
        ],
        "default": None,
    }
    for key in keys.KEYS:
        _describe(schema, key)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _describe(schema: dict[str, Any], key: keys.ConfigKey) -> None:
    """Set the description of a property. A model that is used more than once keeps the first one."""
    section: Any = schema
    *parents, name = key.path.split(".")
    for parent in parents:
        section = _section(schema, section, parent.removesuffix("[]"))
    if section is not None and name in section.get("properties", {}):
        text = _PREFIXES[key.status] + key.about
        section["properties"][name].setdefault("description", text[0].upper() + text[1:] + ".")


def _section(schema: dict[str, Any], section: Any, name: str) -> Any:
    """The object schema below a property, through references, lists and alternatives."""
    found = (section or {}).get("properties", {}).get(name)
    while found is not None and "properties" not in found:
        if "$ref" in found:
            found = schema["$defs"].get(found["$ref"].rsplit("/", 1)[-1])
        else:
            choices = [
                *found.get("anyOf", []),
                *found.get("oneOf", []),
                *([found["items"]] if "items" in found else []),
            ]
            found = next((choice for choice in choices if choice.get("type") != "null"), None)
    return found
