"""The tiny vision-language model of the evaluation's tests, and one whose answers are words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.evaluation.conftest import vlm_folder as vlm_folder


@pytest.fixture(scope="session")
def speaking_vlm(vlm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights say anything, bytes and tokens of control among it: this one says letters."""
    folder = tmp_path_factory.mktemp("speaking") / "vlm"
    shutil.copytree(vlm_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    other = [n for n in range(len(tokenizer)) if not tokenizer.decode([n]).strip().isalpha()]
    GenerationConfig(suppress_tokens=other, max_length=None).save_pretrained(folder)
    return folder
