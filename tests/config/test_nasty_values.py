"""Whatever stands in the place of a value: a config, or one short line that names the key."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from dopsd.config import RunConfig, dump_config, load_config, parse_config
from dopsd.errors import ConfigError

PLANTED = "PLANTED"
NASTY = (
    *("inf", "-.inf", "nan", "-1", "1e400", "9223372036854775808", "9" * 5000, "2024-02-31"),
    *("", "~", "''", "true", "[]", "{}", "[[[]]]", "{a: {b: c}}", "[inf, nan]", "{null: null}"),
    *('"a\\0b"', '"\\e[31m"', '"\\ud800"', '"a\\nb"', "a" * 100_000, "[" * 5000, "&a [*a]"),
    *("!!timestamp 2024-02-31", f"https://me:{PLANTED}@host/x", f"hf_{PLANTED}1234567"),
)
NAMES = (
    *("6e10234", "yes", "no", "off", "null", "~", "1_000", "0o17", "0x1F", "12:30:00", "1."),
    *("2024-02-31", "2024-02-31T10:00:00Z", ".inf", "nan", "+1", "1e3", "=", "<<"),
)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


SECTIONS = sorted({key.rpartition(".")[0] for key in keys(RunConfig)})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_takes_a_value_or_names_itself_in_a_short_line(section: str) -> None:
    for key in keys(RunConfig):
        if key.rpartition(".")[0] != section:
            continue
        for value in NASTY:
            try:
                config = load_config(None, ["data.source=x", f"{key}={value}"])
            except ConfigError as error:
                line = str(error)
                assert len(line) < 400 and line.isprintable(), (key, line)
                assert PLANTED not in line, (key, line)
                rules = (
                    "learner.",
                    "method.",
                    "data.",
                    "inference.",
                    "context.",
                    "source",
                    "lora.",
                )
                assert line.startswith((key, *rules)), (key, line)
            else:
                again = parse_config(dump_config(config), "again.yaml")
                assert again == config, (key, value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quotes", ["{}", "'{}'", '"{}"'])
def test_a_name_is_the_text_that_it_is(name: str, quotes: str) -> None:
    config = load_config(None, ["data.source=x", f"run.name={quotes.format(name)}"])
    assert config.run.name == name
    assert parse_config(dump_config(config), "again.yaml").run.name == name


def test_nothing_is_none_where_that_is_allowed() -> None:
    for text in ("", "~", "null"):
        config = load_config(None, ["data.source=x", f"data.shards={text}"])
        assert config.data.shards is None
    assert load_config(None, ["data.source=x", "data.shards='null'"]).data.shards == "null"
    assert load_config(None, ["data.source=x", "data.caption_keys=[no, ~]"]).data.caption_keys == [
        "no",
        "~",
    ]


def test_aliases_do_not_grow_without_end() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"bomb\.yaml: not YAML: more than 100000 values"):
        parse_config("\n".join(levels), "bomb.yaml")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (b"run: {name: \xff}", r"not UTF-8 \(invalid start byte at byte 12\)"),
        (b"run:\n  name: a\0\0", "line 2: a NUL character"),
        (b"run: [" + b"[" * 5000, "not YAML: nested too deeply"),
        (b"- " * 5000, "not YAML: nested too deeply"),
        (b"a" * (2**20 + 1), "1048577 bytes, allowed: 1048576"),
        (b"%YAML 9.9\n---\nrun: {}", "not YAML: line 1"),
        (b"run: {}\n---\nrun: {}", "not YAML: line 2"),
        (b"run: {folders: x}", "run.folders: unknown key"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(payload: bytes, line: str, tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(payload)
    with pytest.raises(ConfigError, match=line) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_pipe_is_no_config(tmp_path) -> None:
    import os

    with pytest.raises(ConfigError, match="a folder; allowed: a YAML file"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe.yaml: cannot be read: not a regular file"):
        load_config(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="no such file or recipe") as caught:
        load_config("x" * 100_000)
    assert len(str(caught.value)) < 1600
