"""`preview.prompts`: taken from a list or a file, refused in one line before anything begins."""

from __future__ import annotations

import pytest

from dopsd.cli.main import main
from dopsd.config import RunConfig
from dopsd.driver.drawing.sample_prompts import MOST, with_sample_prompts
from dopsd.errors import ConfigError
from dopsd.models import FAMILIES
from tests.helpers.tiny import make_config


def asked(base, prompts, **sections) -> RunConfig:
    config = make_config(base, preview={"prompts": prompts}, **sections)
    return with_sample_prompts(config, FAMILIES["z_image"](str(base)))


def test_a_file_becomes_its_lines_so_that_the_run_needs_it_no_more(tiny_base, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red cat\r\n\r\n  a blue mat  \r\n".encode())
    assert asked(tiny_base, str(path)).preview.prompts == ["a red cat", "a blue mat"]
    path.unlink()
    assert asked(tiny_base, ["a red cat"]).preview.prompts == ["a red cat"]
    assert asked(tiny_base, []).preview.prompts == []


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (None, "no such file"),
        (b" \n\r\n", "no prompt in it, allowed: one a line"),
        ("ein Kätzchen".encode("cp1252"), "not UTF-8 (invalid continuation byte at byte 5)"),
        (b"a red cat\na \x1b[31m cat", "U+001B"),
        (b"a red cat\na <|im_end|> cat", "prompt 2 ('a <|im_end|> cat'): "),
        (b"a red cat\n" * (MOST + 1), f"{MOST + 1} prompts, allowed: at most {MOST}"),
        (b"a red cat\n" + b"a red cat " * 900, "tokens, allowed: "),
    ],
    ids=["missing", "empty", "windows-1252", "control", "special token", "many", "long"],
)
def test_a_file_that_cannot_be_drawn_is_refused(payload, problem, tiny_base, tmp_path):
    path = tmp_path / "prompts.txt"
    if payload is not None:
        path.write_bytes(payload)
    with pytest.raises(ConfigError) as refused:
        asked(tiny_base, str(path))
    assert str(refused.value).startswith("preview.prompts") and problem in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("prompts", ["", " ", ["a red cat", " "]])
def test_an_empty_text_is_refused(prompts, tiny_base):
    with pytest.raises(ConfigError, match=r"preview.prompts: .*empty"):
        asked(tiny_base, prompts)


def test_how_long_a_prompt_may_be_is_what_the_run_reads(tiny_base):
    with pytest.raises(ConfigError, match=r"prompt 1 .* tokens, allowed: \d+ at most"):
        asked(tiny_base, ["a red cat on a blue mat " * 8], context={"text_tokens": 64})


def test_a_missing_file_ends_the_command_before_anything_begins(tmp_path, capsys):
    words = [f"run.folder={tmp_path}/run", "preview.prompts=nowhere.txt"]
    assert main(["train", "configs/shapes.yaml", *words]) == 1
    assert capsys.readouterr().err == "dopsd: preview.prompts nowhere.txt: no such file\n"
    assert not (tmp_path / "run").exists()


def test_a_context_with_references_takes_none(tiny_flux2):
    with pytest.raises(ValueError, match=r"preview.prompts: given with context.name: edit_ref"):
        make_config(
            tiny_flux2,
            model={"family": "flux2_klein", "base": str(tiny_flux2)},
            context={"name": "edit_reference"},
            preview={"prompts": ["a red cat"]},
        )
