"""The JSON schema of golden/vectors/manifest.json."""

from __future__ import annotations

from typing import Any

from spec_tests.config import NAMED_VALUES

_TEXT = {"type": "string", "minLength": 1}
_CLAUSE = {"type": "string", "pattern": r"^[1-9]\.[1-9][0-9]*$"}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4}
_ID = {"type": "string", "pattern": "^[a-z0-9-]+$"}


def _pair(low: int) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "integer", "minimum": low}, "minItems": 2, "maxItems": 2}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


_CONFIG = _object(
    {
        "in_planes": {"type": "integer", "minimum": 1},
        "out_planes": {"type": "integer", "minimum": 1},
        "kernel_size": _pair(1),
        "stride": _pair(1),
        "padding": _pair(0),
        "output_size": {"anyOf": [{"type": "null"}, _pair(1)]},
        **{name: {"enum": list(values)} for name, values in NAMED_VALUES.items()},
    },
    description="The ten arguments of the block; pairs are [height, width].",
)

_VECTOR = _object(
    {
        "id": {**_ID, "description": "The name of the file without its suffix."},
        "file": {"type": "string", "pattern": r"^[a-z0-9-]+\.safetensors$"},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "bytes": {"type": "integer", "minimum": 1},
        "purpose": {**_TEXT, "description": "What it is good for."},
        "clauses": {
            "type": "array",
            "items": _CLAUSE,
            "minItems": 1,
            "uniqueItems": True,
            "description": "The clauses of which a wrong result was computed that lies outside of the bounds.",
        },
        "mode": {"enum": ["train", "eval"]},
        "arithmetic": {"const": "float32", "description": "The arithmetic that the bounds are derived for."},
        "after": {**_ID, "description": "The vector that the same block runs before this one; then b.* is loaded."},
        "config": _CONFIG,
        "input": {**_SHAPE, "description": "The shape of x and dx: batch, channels, height, width."},
        "output": {**_SHAPE, "description": "The shape of y and dy."},
        "coarse": {
            "type": "array",
            "items": {"type": "string", "pattern": r"^(dx|d\.[a-z0-9_.]+)$"},
            "minItems": 1,
            "uniqueItems": True,
            "description": "Gradients whose median bound exceeds 1 % of the largest value; many are 0 by cancellation.",
        },
    },
    optional=("after", "coarse"),
)

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Test vectors of BlockBottleneck2d",
    **_object(
        {
            "$schema": {"const": "manifest.schema.json"},
            "format": {"const": 1},
            "rule": {**_TEXT, "description": "How a result is compared."},
            "not_covered": {
                "type": "object",
                "propertyNames": _CLAUSE,
                "additionalProperties": _TEXT,
                "description": "Clauses of chapters 4 to 6 that no vector can show, each with the reason.",
            },
            "vectors": {"type": "array", "items": _VECTOR, "minItems": 1},
        }
    ),
}
