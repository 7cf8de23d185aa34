"""The examples of docs/extending.md, taken from the page, register and run."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dopsd.config import RunConfig, load_config
from dopsd.config.context import CONTEXT_NEEDS
from dopsd.contexts import CONTEXTS, encoder_class
from dopsd.data.manifest import PrepareSettings
from dopsd.data.prepare.shards import Inspector, write_shard
from dopsd.data.sample import Sample
from dopsd.evaluation.metrics import METRICS, make_metric
from dopsd.evaluation.metrics.base import MetricInput
from dopsd.method.objective import state_loss
from dopsd.method.terms import target_terms
from dopsd.models import FAMILIES, ZImage
from dopsd.models.sampling import batch_velocity
from dopsd.models.trained import TrainableParameters
from dopsd.records import Context
from tests.docs.pages import ROOT, blocks

Example = Callable[[str], ModuleType]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Example]:
    """Imports an example by its file's name, and forgets what it registered."""
    code = {text.split()[1]: text for text in blocks(ROOT / "docs" / "extending.md", "python")}
    registries = [FAMILIES, CONTEXTS, CONTEXT_NEEDS, METRICS]
    before = [dict(registry) for registry in registries]
    monkeypatch.syspath_prepend(tmp_path)

    def imported(file: str) -> ModuleType:
        (tmp_path / file).write_text(code[file])
        # Its name is not in sys.modules before, and not after the test.
        monkeypatch.setitem(sys.modules, Path(file).stem, ModuleType("none"))
        monkeypatch.delitem(sys.modules, Path(file).stem)
        return importlib.import_module(Path(file).stem)

    yield imported
    for registry, entries in zip(registries, before):
        registry.clear()
        registry.update(entries)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("shapes")


def test_family(example: Example, config: RunConfig) -> None:
    example("my_family.py")
    family = FAMILIES["my_family"]("shapes")
    trained = TrainableParameters(config, family).describe(family.skeleton())
    assert set(trained) == set(family.lora_targets) and min(trained.values()) > 0
    assert torch.equal(family.sigmas(4, 32, 32), ZImage("shapes").sigmas(4, 32, 32))


def test_context(example: Example, config: RunConfig) -> None:
    example("my_context.py")
    assert not CONTEXT_NEEDS["crisp"].image
    encoder = encoder_class("crisp").from_config(config, "cpu")
    samples = [Sample("a", "a red square on teal", None)]
    student, teacher = encoder.encode(samples)
    assert teacher.tensors["lengths"][0] > student.tensors["lengths"][0]
    ((seen, shown),) = encoder.views(samples)
    assert "crisp" in shown.text and "crisp" not in seen.text


def test_objective(example: Example) -> None:
    objective = example("my_objective.py").teacher_at_one_level
    family = FAMILIES["z_image"]("shapes")
    transformer = family.load_transformer(torch.float32, "cpu")
    width = family.part_config("transformer")["cap_feat_dim"]
    context = Context({"embeds": torch.zeros(1, 8, width), "lengths": torch.tensor([8])})
    velocity = batch_velocity(family, transformer, context, torch.float32)
    shape = family.latent_shape(32, 32)
    targets = objective(torch.zeros(1, *shape), torch.randn(3, 1, *shape), 0.5, velocity)
    losses = []
    for term in target_terms(targets, context):
        student = velocity(term.state, term.sigma.expand(1))
        losses.append(state_loss(student, term.target, term.weight))
    # Student and teacher are the same weights under the same context here.
    assert len(losses) == 3 and torch.stack(losses).abs().max() < 1e-8


def test_metric(example: Example) -> None:
    example("my_metric.py")
    metric = make_metric("brightness")
    metric.load()
    white = MetricInput(Image.new("RGB", (8, 8), "white"))
    assert metric.measure([white]) == [{"brightness": 255.0}]
    assert set(metric.columns) == {"brightness"}


def test_data_source(example: Example, tmp_path: Path) -> None:
    pixels = np.full((64, 64, 3), 128, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (tmp_path / "list.tsv").write_text("1.png\ta [V] cat\n2.png\ta dog\n3.png\n")
    source = example("my_source.py").read_pairs(str(tmp_path / "list.tsv"), {})
    kinds = Counter(row.problem for row in source.rows)
    assert kinds == {None: 2, "missing caption": 1}
    inspector = Inspector.of(PrepareSettings(pixel_area=64 * 64))
    good, missing = (inspector.inspect(row) for row in source.rows[:2])
    assert (good.bucket, good.reason, missing.bucket) == ("64x64", "", "")
    write_shard(str(tmp_path / "shard.parquet"), [("64x64", source.rows[:1])])
    (record,) = pq.read_table(tmp_path / "shard.parquet").to_pylist()
    assert record["sample_id"] == "1" and dict(record["captions"]) == {"caption": "a [V] cat"}
