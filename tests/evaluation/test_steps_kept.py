"""Few steps beside many: what is lost, kept, or only another subject."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFilter import GaussianBlur

from dopsd.evaluation.image_scores import ImageScores
from dopsd.evaluation.metrics import METRICS, make_metric
from dopsd.evaluation.metrics.base import MetricInput
from dopsd.evaluation.results import summarize
from dopsd.evaluation.spec import BASE, EvaluatedModel
from dopsd.evaluation.steps_kept import STEPS, StepsKept, Verdict

MODELS = (EvaluatedModel(BASE), EvaluatedModel("tuned", ("x.safetensors",)))
NO_BLUR = dict.fromkeys(STEPS, 0.0)
AS_AFTER_SFT = {2: 2.0, 4: 1.5, 8: 0.8, 30: 0.0}


def drawn(prompt: int, seed: int) -> Image.Image:
    rng = np.random.default_rng([prompt, seed])
    scene = np.kron(rng.integers(40, 216, (4, 4, 3)), np.ones((8, 8, 1)))
    return Image.fromarray((scene + rng.integers(-30, 31, (32, 32, 1))).astype(np.uint8))


def evaluated(blur: dict[int, float], prompts=8, seeds=2, prior=True, plainer=1) -> StepsKept:
    """Pictures of equal noise by a base and by a model that blurs them by a radius for each number
    of steps; ``plainer``: its subject has so many times larger parts."""
    metric, scores = make_metric("sharpness"), []
    for model in (BASE, "tuned"):
        for steps in STEPS:
            for prompt in range(prompts):
                for seed in range(seeds):
                    image = drawn(prompt, seed)
                    if model != BASE:
                        image = image.crop((0, 0, 32 // plainer, 32 // plainer)).resize((32, 32))
                        image = image.filter(GaussianBlur(blur[steps]))
                    (values,) = metric.measure([MetricInput(image)])
                    scores.append(ImageScores(model, steps, "g", prior, f"{prompt}", seed, values))
    return summarize(scores, MODELS, METRICS["sharpness"].columns, {}, {}).steps_kept


def verdict(*args, **more) -> Verdict:
    (found,) = evaluated(*args, **more).verdicts
    return found


def test_blur_where_steps_are_few_is_lost_as_after_sft():
    found = verdict(AS_AFTER_SFT)
    assert found.outcome == "lost" and (found.few, found.many) == (4, 30)
    assert found.at_few.high < 0.6 and found.trend.high < 0.6
    assert found.at_many.value == pytest.approx(1)
    assert found.sentence == (
        f"prompts of what the base knows: at 4 steps {found.at_few.value:.2f} "
        f"[{found.at_few.low:.2f}, {found.at_few.high:.2f}] of the base's sharpness, at 30 steps "
        f"1.00 [1.00, 1.00]; few against many {found.trend.value:.2f} [{found.trend.low:.2f}, "
        f"{found.trend.high:.2f}]: few steps are LOST, it blurs where they are few, as after SFT"
    )


def test_equal_pictures_keep_their_steps_and_the_curves_say_so():
    kept = evaluated(NO_BLUR, prior=False)
    (found,) = kept.verdicts
    assert found.outcome == "kept" and "other prompts" in found.sentence
    assert (found.trend.low, found.trend.value, found.trend.high) == (1, 1, 1)
    base, tuned = kept.curves
    assert [point.steps for point in tuned.points] == list(STEPS)
    assert [point.ratio.value for point in tuned.points] == pytest.approx([1] * 4)
    assert [point.value for point in base.points] == [point.value for point in tuned.points]
    assert all(point.ratio is None for point in base.points)


def test_a_curve_falls_with_fewer_steps():
    *_, tuned = evaluated(AS_AFTER_SFT).curves
    ratios = [point.ratio.value for point in tuned.points]
    assert ratios == sorted(ratios) and ratios[0] < 0.5 < ratios[-1]


def test_another_subject_is_not_called_a_loss_of_steps():
    assert verdict(NO_BLUR, plainer=2).outcome == "blurred"
    assert verdict(dict.fromkeys(STEPS, 1.0)).outcome == "blurred"
    assert verdict({**AS_AFTER_SFT, 30: 0.5}, plainer=2).outcome == "lost"


def test_a_difference_that_prompts_disagree_about_is_unclear():
    scores = [
        ImageScores(model, steps, "g", True, f"{prompt}", 0, {"sharpness": value})
        for prompt, lost in enumerate([1.3, 0.5, 1.2, 0.6])
        for model, steps, value in (
            (BASE, 4, 1.0), (BASE, 30, 1.0), ("tuned", 4, lost), ("tuned", 30, 1.0)
        )
    ]  # fmt: skip
    (found,) = summarize(scores, MODELS, METRICS["sharpness"].columns, {}, {}).steps_kept.verdicts
    assert found.outcome == "unclear" and "more --seeds" in found.sentence


def test_one_prompt_has_the_interval_of_its_noises():
    found = verdict({**AS_AFTER_SFT, 4: 0.4}, prompts=1, seeds=6)
    assert found.at_few.low < found.at_few.value < found.at_few.high


def test_a_base_without_sharpness_is_divided_by_nowhere():
    scores = [
        ImageScores(model, steps, "g", True, "p", 0, {"sharpness": float(model != BASE)})
        for model in (BASE, "tuned")
        for steps in (4, 30)
    ]
    results = summarize(scores, MODELS, METRICS["sharpness"].columns, {}, {})
    assert results.steps_kept.verdicts == []
    json.dumps(json.loads(results.to_json()), allow_nan=False)


def test_one_number_of_steps_has_no_view():
    scores = [ImageScores(BASE, 4, "g", True, "p", 0, {"sharpness": 1.0})]
    assert summarize(scores, MODELS, {}, {}, {}).steps_kept == StepsKept([], [])
