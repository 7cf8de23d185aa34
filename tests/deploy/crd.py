"""Validate manifests against CRD schemas as strictly as an API server does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import jsonschema
import yaml


class UniqueKeyLoader(yaml.CSafeLoader):
    """Refuses a key given twice in one mapping, which YAML readers let the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if key != "<<" and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def documents(file: Path) -> list[dict[str, Any]]:
    """The Kubernetes objects of a YAML file."""
    text = file.read_text(encoding="utf-8")
    return [document for document in yaml.load_all(text, UniqueKeyLoader) if document]


def load_schemas(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """JSON schemas of every CRD in a folder, by (apiVersion, kind)."""
    schemas = {}
    for file in sorted(folder.glob("*.yaml")):
        for crd in documents(file):
            group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
            for version in crd["spec"]["versions"]:
                schema = to_json_schema(version["schema"]["openAPIV3Schema"])
                # The API server checks an object's own metadata itself.
                schema["properties"]["metadata"] = {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                        "namespace": {"type": "string"},
                        "labels": {"additionalProperties": {"type": "string"}},
                        "annotations": {"additionalProperties": {"type": "string"}},
                    },
                }
                schemas[f"{group}/{version['name']}", kind] = schema
    return schemas


def to_json_schema(schema: Any) -> Any:
    """A structural OpenAPI v3 schema with Kubernetes' extensions as a plain JSON schema.

    Objects are closed unless they say otherwise: an API server with strict validation refuses
    fields that a schema does not know.
    """
    if isinstance(schema, list):
        return [to_json_schema(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: to_json_schema(entry) for name, entry in value.items()}
        elif key in ("additionalProperties", "items", "not", "anyOf", "allOf", "oneOf"):
            result[key] = to_json_schema(value)
        elif key not in ("description", "format", "default", "nullable"):
            result[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    return result


def _unique(validator: Any, keys: list[str], instance: Any, schema: Any) -> Iterator[Any]:
    """Kubernetes' list maps: no two entries with the same key fields (defaults filled in)."""
    if not isinstance(instance, list):
        return
    defaults = {"protocol": "TCP"}
    seen = []
    for entry in instance:
        identity = [entry.get(key, defaults.get(key)) for key in keys]
        if identity in seen:
            yield jsonschema.ValidationError(f"{dict(zip(keys, identity))} is given twice")
        seen.append(identity)


def _rules(
    validator: Any, rules: list[dict[str, Any]], instance: Any, schema: Any
) -> Iterator[Any]:
    """The CEL rules of a value, those left out that compare it with the one before an update."""
    for rule in rules:
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": instance}):
            yield jsonschema.ValidationError(rule.get("message", rule["rule"]))


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"x-kubernetes-list-map-keys": _unique, "x-kubernetes-validations": _rules},
)


def errors(manifest: dict[str, Any], schemas: dict[tuple[str, str], Any]) -> list[str]:
    """What an API server would refuse, one line each; empty when it would not."""
    schema = schemas.get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        return [f"no schema for {manifest['apiVersion']} {manifest['kind']}"]
    found = _Validator(schema).iter_errors(manifest)
    return sorted(f"{error.json_path}: {error.message}" for error in found)
