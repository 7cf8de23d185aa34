"""Manifests as text for `kubectl apply -f -`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter


class _Representer(SafeRepresenter):
    """Writes a text of several lines, such as a config, as it stands."""

    def represent_lines(self, text: str) -> Any:
        style = "|" if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_lines)


def as_yaml(documents: Iterable[dict[str, Any]]) -> str:
    """A stream of documents, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style, writer.width = False, 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    for number, document in enumerate(documents):
        out.write("---\n" * (number > 0))
        writer.dump(document, out)
    return out.getvalue()
