"""The base's own samples beside the data: drawn by real actors, planned, read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dopsd.config import RunConfig, load_config
from dopsd.config.data import PRIOR
from dopsd.data.manifest import Manifest
from dopsd.data.pictures.images import decode_image
from dopsd.data.read import RowGroups, read_micro_batch, samples_of
from dopsd.data.run_data import plan_of, prepared, preview_samples, read_spec
from dopsd.driver.drawing.prior import check_prior, with_prior
from dopsd.driver.setup.checks import with_absolute_paths
from dopsd.errors import CheckpointError, ConfigError, DataError
from dopsd.evaluation.prompts import EvalPrompt
from dopsd.evaluation.spec import BASE, EvaluatedModel, EvaluateSpec
from dopsd.evaluation.worker import EvaluationWorker
from dopsd.method.noise import NoisePurpose
from dopsd.models import resolve_base
from dopsd.ray_cluster.placement import Role
from dopsd.shapes import oracle
from dopsd.shapes.grid import from_image
from tests.helpers.runs import quiet

pytestmark = pytest.mark.usefixtures("ray_cluster")

LEARNER = Role("learner", 1, 0.4, 0.0)
TEXTS = (
    "a red striped circle on teal",
    "a blue flat square on black",
    "a green flat cross on gray",
)


@pytest.fixture(scope="module")
def drawn(ray_cluster, tmp_path_factory) -> tuple[RunConfig, Manifest]:
    folder = tmp_path_factory.mktemp("prior")
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    config = with_absolute_paths(
        load_config(
            "configs/shapes.yaml",
            [
                f"run.folder={folder}/run",
                f"data.prior.prompts={folder}/prompts.txt",
                "data.prior.count=5",
                "data.prior.weight=2",
                "data.caption_keys=[detailed]",
            ],
        )
    )
    return config, with_prior(config, prepared(config, lambda status: None), LEARNER, quiet)


def test_the_samples_are_what_the_base_draws(drawn):
    config, manifest = drawn
    assert manifest.concepts == {"bars": 12, PRIOR: 5} and manifest.samples == 17
    groups = RowGroups(config.shards, read_spec(config))
    plan = plan_of(config, manifest)
    seen: dict[str, set[bytes]] = {}
    counts: Counter[str] = Counter()
    for batch in plan.micro_batches(0, plan.steps_per_epoch):
        for sample in samples_of(read_micro_batch(batch, groups, config.run.seed)):
            counts[sample.sample_id] += 1
            if sample.sample_id.startswith(PRIOR):
                seen.setdefault(sample.prompt, set()).add(sample.image.tobytes())
                (reading,) = oracle.read(from_image(Image.fromarray(sample.image))[None])
                words = sample.prompt.split()
                assert reading.valid
                assert [reading.fill, reading.pattern, reading.shape] == words[1:4]
    assert {text: len(pictures) for text, pictures in seen.items()} == dict(
        zip(TEXTS, (2, 2, 1), strict=True)
    ), "a prompt that comes again is drawn from other noise"
    assert Counter(counts.values()) == {1: 12, 2: 5}, "weight 2: twice per epoch"


def test_their_noise_is_no_evaluations(drawn, monkeypatch):
    config, _ = drawn
    (folder,) = Path(config.shards).glob("prior-*")
    png = (folder / "pictures" / "000000.png").read_bytes()
    spec = EvaluateSpec("", (EvalPrompt(TEXTS[0]),), base=resolve_base("shapes"))
    spec = replace(spec, height=32, width=32)
    seed, steps = config.run.seed, config.preview.steps or config.method.steps
    found = {
        step: np.asarray(
            decode_image(
                EvaluationWorker(spec, "cpu", step).generate(
                    EvaluatedModel(BASE), [TEXTS[0]], [seed], steps
                )[0]
            )
        ).astype(int)
        for step in (NoisePurpose.EVALUATION, NoisePurpose.PRIOR)
    }
    pixels = np.asarray(decode_image(png)).astype(int)
    assert np.abs(found[NoisePurpose.PRIOR] - pixels).max() <= 1
    assert np.abs(found[NoisePurpose.EVALUATION] - pixels).mean() > 5
    # Samples of other noise, such as an older dopsd's, are not taken for these.
    other = SimpleNamespace(PRIOR=NoisePurpose.EVALUATION)
    monkeypatch.setattr("dopsd.driver.drawing.prior.NoisePurpose", other)
    monkeypatch.setattr(
        "dopsd.driver.drawing.prior.draw_samples", lambda *_: pytest.fail("drawn anew")
    )
    with pytest.raises(pytest.fail.Exception, match="drawn anew"):
        with_prior(config, prepared(config, lambda status: None), LEARNER, quiet)


def test_they_are_drawn_once_and_previews_leave_them_out(drawn, monkeypatch):
    config, manifest = drawn
    monkeypatch.setattr(
        "dopsd.driver.drawing.prior.draw_samples", lambda *_: pytest.fail("drawn again")
    )
    again = with_prior(config, prepared(config, lambda status: None), LEARNER, quiet)
    assert again == manifest
    shown = preview_samples(config, manifest, 100)
    assert len(shown) == 12 and not any(each.sample_id.startswith(PRIOR) for each in shown)


def test_a_run_that_may_not_go_on_draws_nothing(drawn, monkeypatch):
    config, _ = drawn
    other = config.model_copy(deep=True)
    other.data.prior.count = 6
    monkeypatch.setattr(
        "dopsd.driver.drawing.prior.draw_samples", lambda *_: pytest.fail("drawn first")
    )

    def refuse() -> None:
        raise CheckpointError("data.prior.count: 6, the checkpoint has 5")

    with pytest.raises(CheckpointError, match=r"data\.prior\.count: 6"):
        with_prior(other, prepared(other, lambda status: None), LEARNER, quiet, refuse)
    assert len(list(Path(config.shards).glob("*prior*"))) == 1, "nothing is left beside them"


def test_what_cannot_be_is_refused(drawn, tmp_path: Path):
    config, manifest = drawn
    with pytest.raises(DataError, match="5 samples of the data have the concept 'prior'"):
        with_prior(config, manifest, LEARNER, quiet)
    missing = config.model_copy(deep=True)
    missing.data.prior.prompts = str(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match=r"none\.txt"):
        check_prior(missing)
    with pytest.raises(ConfigError, match=r"data\.concept_weights: 'prior' names the base's own"):
        load_config("configs/shapes.yaml", ["data.concept_weights={prior: 2}"])
