"""How files of JSON and YAML are read: whatever is wrong becomes one line with path and place."""

from dopsd.readers.json_reader import Object, checked, json_value, parse_json, read_json
from dopsd.readers.text import read_payload, read_text
from dopsd.readers.yaml_reader import PlainNull, yaml_value

__all__ = [
    "Object",
    "PlainNull",
    "checked",
    "json_value",
    "parse_json",
    "read_json",
    "read_payload",
    "read_text",
    "yaml_value",
]
