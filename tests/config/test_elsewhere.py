"""What other trainers call a key is answered with ours."""

from __future__ import annotations

import re

import pytest

from dopsd.config import RunConfig, load_config
from dopsd.config.elsewhere import NAMES, keys
from dopsd.errors import ConfigError

KEYS = set(keys(RunConfig))


def test_what_is_suggested_is_a_key_and_no_name_stands_twice() -> None:
    assert {re.match(r"[\w.]+", ours)[0] for ours in NAMES} <= KEYS
    names = [name for names in NAMES.values() for name in names.split()]
    assert len(names) == len(set(names)) > 100


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "learner.lr"),
        ("train.lr", "learner.lr"),  # a whole section of theirs
        ("train.foo", ""),
        ("model.lr", "learner.lr"),
        ("learning-rate", "learner.lr"),
        ("epochs", "learner.steps, which counts optimizer steps"),
        ("learner.epochs", "learner.steps, which counts optimizer steps"),
        ("learner.rank", "lora.rank"),
        ("lora.network_dim", "lora.rank"),
        ("batch_size", "learner.global_batch, the samples of an optimizer step"),
        ("data.resolution", "data.pixel_area, which counts pixels: 1048576 for 1024x1024"),
        ("seed", "run.seed"),
        ("deadline", "timeouts"),  # an older name goes before
        ("learner.lrr", "lr"),  # and so does one that is misspelt
    ],
)
def test_the_line_says_what_was_meant(key: str, meant: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_config("shapes", [f"{key}=1"])
    hint = f" (did you mean {meant}?)" if meant else ""
    assert re.match(rf"[\w.-]+: unknown key{re.escape(hint)}; allowed: ", str(told.value))


def test_each_of_their_names_is_unknown_here_and_answered() -> None:
    for meant, names in NAMES.items():
        for name in names.split():
            assert name not in RunConfig.model_fields
            with pytest.raises(ConfigError, match=re.escape(f"(did you mean {meant}?)")):
                load_config("shapes", [f"{name}=1"])
