"""Prompts to evaluate with: a file of them, or the shapes world's own."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dopsd import shown
from dopsd.credentials import redact
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.readers import Object, parse_json, read_text
from dopsd.shapes.concepts import CONCEPTS, Prompt, concept_prompts, prior_prompts
from dopsd.shapes.world import NAMES

PRIOR = "prior"
"""Group of the prompts about what the base knows already."""
_TYPES: dict[str, tuple[str, Any]] = {
    "prompt": ("a text", str),
    "group": ("a text", str),
    "prior": ("true or false", bool),
    "references": ("a list of paths", list),
    "seeds": ("a list of whole numbers from 0", list),
    "expected": ("a mapping", dict),
    "concept": ("a text", str),
}


@dataclass(frozen=True)
class EvalPrompt:
    """One prompt and what its pictures are held against.

    ``group``: prompts that share rows of the table, e.g. a concept. ``prior``: about what the base
    knows, so that the base's own scores are the mark. ``references``: paths of pictures of the
    concept. ``seeds``: None takes the evaluation's. ``expected`` and ``concept``: for the shapes
    world, each named attribute's value, and which of them is the concept.
    """

    text: str
    group: str = "prompts"
    prior: bool = False
    references: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    expected: dict[str, str] = field(default_factory=dict)
    concept: str | None = None

    def image_name(self, seed: int) -> str:
        """File name of the prompt's picture: readable, and unique by text and seed."""
        slug = re.sub(r"[^a-z0-9]+", "-", redact(self.text).lower()).strip("-")[:40]
        return f"{slug}-{hashlib.sha256(self.text.encode()).hexdigest()[:10]}-s{seed}.png"


def read_prompts(path: str) -> tuple[EvalPrompt, ...]:
    """Prompts of a ``.txt`` file (one a line) or a ``.jsonl`` file (fields of EvalPrompt, the text
    under ``prompt``; references relative to the file).

    Raises ConfigError for a missing or empty file, naming the first bad line.
    """
    if not path.endswith((".txt", ".jsonl")):
        raise ConfigError(f"prompts {path}: allowed: .txt, .jsonl, prepared shards, shapes:CONCEPT")
    # Not splitlines: it would cut at U+2028 and its like, which a prompt may hold.
    lines = read_text(path, ConfigError, f"prompts {path}").split("\n")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"prompts {path}: no prompt in it")
    if path.endswith(".txt"):
        return tuple(EvalPrompt(line) for _, line in numbered)
    return tuple(_parse(line, f"{path}:{number}", path) for number, line in numbered)


def write_prompts(path: str, prompts: Sequence[EvalPrompt], verbatim: bool = False) -> None:
    """Write what :func:`prompts_file` gives.

    ``verbatim``: to be read again, credentials in prompts included; otherwise it is a record.
    """
    storage.write_bytes(path, prompts_file(path, prompts), verbatim=verbatim)


def prompts_file(path: str, prompts: Sequence[EvalPrompt]) -> bytes:
    """The ``.jsonl`` file ``path``; references inside its folder are relative to it."""
    folder = posixpath.dirname(path) + "/"
    rows = []
    for prompt in prompts:
        row = {key: value for key, value in asdict(prompt).items() if value not in (None, (), {})}
        row["references"] = [path.removeprefix(folder) for path in prompt.references]
        rows.append(json.dumps({"prompt": row.pop("text"), **row}, ensure_ascii=False))
    return ("\n".join(rows) + "\n").encode()


def _parse(line: str, where: str, file: str) -> EvalPrompt:
    row = parse_json(line, f"prompts {where}", Object, ConfigError)
    if not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise ConfigError(f'prompts {where}: allowed: {{"prompt": "...", ...}}')
    for key, value in row.items():
        if key not in _TYPES:
            raise ConfigError(
                f"prompts {where}: {shown.brief(key)}: unknown, allowed: {', '.join(_TYPES)}"
            )
        what, kind = _TYPES[key]
        items_fit = {
            "references": lambda items: all(isinstance(path, str) for path in items),
            "seeds": lambda items: items and all(type(i) is int and i >= 0 for i in items),
        }.get(key, lambda _: True)
        if not isinstance(value, kind) or not items_fit(value):
            raise ConfigError(f"prompts {where}: {key}: {shown.value(value)}, allowed: {what}")
    expected, concept = row.get("expected", {}), row.get("concept")
    _check_expected(expected, where)
    if concept is not None and concept not in expected:
        raise ConfigError(
            f"prompts {where}: concept: {shown.value(concept)}, allowed: a key of expected"
        )
    folder = posixpath.dirname(file)
    prior = row.get("prior", False)
    return EvalPrompt(
        row["prompt"],
        row.get("group", PRIOR if prior else "prompts"),
        prior,
        tuple(
            path if storage.is_remote(path) else storage.join(folder, path)
            for path in row.get("references", ())
        ),
        tuple(row["seeds"]) if "seeds" in row else None,
        expected,
        concept,
    )


def _check_expected(expected: dict[str, Any], where: str) -> None:
    for attribute, value in expected.items():
        if attribute not in NAMES:
            raise ConfigError(
                f"prompts {where}: expected: {shown.value(attribute)}, allowed: {', '.join(NAMES)}"
            )
        if not isinstance(value, str) or value not in NAMES[attribute]:
            raise ConfigError(
                f"prompts {where}: expected: {attribute}: {shown.value(value)}, allowed: "
                + ", ".join(NAMES[attribute])
            )


def shapes_prompts(concept: str, count: int, seed: int = 0) -> tuple[EvalPrompt, ...]:
    """``count`` prompts for a concept of the shapes world and ``count`` about what its base knows,
    all different.

    Raises ConfigError for an unknown concept.
    """
    if concept not in CONCEPTS:
        raise ConfigError(
            f"prompts shapes:{concept}: unknown concept, allowed: {', '.join(sorted(CONCEPTS))}"
        )

    def convert(prompt: Prompt, group: str, of: str | None) -> EvalPrompt:
        values = {name: prompt.scene.named(name) for name in prompt.named}
        expected = {name: value for name, value in values.items() if value is not None}
        return EvalPrompt(prompt.text, group, of is None, expected=expected, concept=of)

    def distinct(draw: Callable[[int], list[Prompt]]) -> list[Prompt]:
        # Short captions repeat; the same prompt and seed would only give the same picture.
        prompts = {prompt.text: prompt for prompt in draw(8 * count)}
        return list(prompts.values())[:count]

    mine = distinct(lambda number: concept_prompts(concept, number, seed))
    prior = distinct(lambda number: prior_prompts(number, seed))
    return (
        *(convert(prompt, concept, CONCEPTS[concept]) for prompt in mine),
        *(convert(prompt, PRIOR, None) for prompt in prior),
    )
