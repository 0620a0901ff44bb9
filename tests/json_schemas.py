"""JSON schemas of the kinds that clients send, drawn at random."""

import random
from typing import Any

_NAMES = ("name", "age", "tags", "email", "items", "kind", "is_open", "at", "score")


def draw_schema(seed: int) -> dict[str, Any]:
    """Returns an object's schema, with a recursive definition one time in five."""
    rng = random.Random(seed)
    schema = _object(rng, 0)
    if seed % 5 == 0:
        node = {
            "type": "object",
            "properties": {
                "label": {"enum": ["a", "b"]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["label", "next"],
            "additionalProperties": False,
        }
        schema["$defs"] = {"node": node}
        schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
        schema["required"].append("tree")
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth + 1) for name in names},
        "required": sorted(rng.sample(names, rng.randint(1, len(names)))),
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "number", "integer", "boolean", "enum", "format", "pattern"]
    if depth < 3:
        kinds += ["object", "array", "union"]
    match kind := rng.choice(kinds):
        case "object":
            return _object(rng, depth)
        case "array":
            most = rng.randint(1, 3)
            return {"type": "array", "items": _value(rng, depth + 1), "maxItems": most}
        case "union":
            return {"anyOf": [_value(rng, depth + 1), {"type": "null"}]}
        case "enum":
            return {"enum": rng.sample(["red", "green", "blue", 1, 2.5, None], 3)}
        case "format":
            return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])}
        case "pattern":
            return {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"}
        case "string":
            return {"type": "string", "maxLength": rng.choice([3, 10, 40])}
        case "integer":
            return {"type": "integer", "minimum": -5, "maximum": rng.randint(0, 1000)}
        case _:
            return {"type": kind}
