"""The VLM judge on a tiny LLaVA: real classes, random weights, answers steered by hand."""

from __future__ import annotations

import pytest
import torch

from dopsd.errors import ModelError
from dopsd.evaluation.concept_prompts import Concept, from_vlm
from dopsd.evaluation.metrics import make_metric
from dopsd.evaluation.metrics.base import MetricInput
from dopsd.evaluation.metrics.judge import LABELS
from dopsd.evaluation.vlm import Vlm
from tests.evaluation.tiny import image_processor, picture


def test_the_judge_gives_every_picture_one_label(vlm_folder):
    judge = make_metric("judge", str(vlm_folder))
    judge.check()
    judge.load()
    shown = [MetricInput(picture(n), targets=(picture(9),)) for n in range(3)] + [
        MetricInput(picture(0))
    ]
    *judged, without = judge.measure(shown)
    assert without == {}
    for values in judged:
        assert values.keys() == LABELS.keys()
        assert sorted(values.values()) == [0, 0, 0, 1]


@pytest.mark.parametrize(("letter", "column"), zip("ABCD", LABELS))
def test_the_likeliest_letter_is_the_label(vlm_folder, letter, column):
    judge = make_metric("judge", str(vlm_folder))
    judge.load()
    vlm = judge.vlm
    (token,) = vlm.processor.tokenizer.encode(letter, add_special_tokens=False)
    other = vlm.processor.tokenizer.eos_token_id

    def likes(_module, _inputs, logits):
        # Something that is no option is likelier still: it is not asked.
        logits[..., token] = 1e4
        logits[..., other] = 1e5

    vlm.model.get_output_embeddings().register_forward_hook(likes)
    (values,) = judge.measure([MetricInput(picture(0), targets=(picture(9),))])
    assert values[column] == 1


def test_the_judge_sees_both_pictures_in_order(vlm_folder):
    vlm = Vlm("judge", str(vlm_folder), "cpu")
    first, second = picture(1), picture(2)
    inputs = vlm.inputs([first, second], "?")
    expected = image_processor()(images=[first, second], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs["pixel_values"], expected)
    assert (inputs["input_ids"] == vlm.model.config.image_token_id).sum() == 2 * 4


def test_answers_are_text_and_repeat(vlm_folder):
    vlm = Vlm("prompts by VLM", str(vlm_folder), "cpu")
    answers = {vlm.answer([picture(0)], "a red cat") for _ in range(2)}
    assert len(answers) == 1 and isinstance(answers.pop(), str)


def test_prompts_by_a_vlm_are_checked_and_cleaned():
    concept = Concept("cat", "a photo of [V] cat on a sofa", (b"",))

    def ask(_picture, question):
        if "other words" in question:
            return '"[V] cat lies on a sofa"\n'
        return "1. [V] cat at sea\n- [V] cat in a wood\n\n[V] cat here\na dog\n4) [V] cat there"

    assert from_vlm(concept, picture(0), ask) == [
        "[V] cat lies on a sofa",
        "[V] cat at sea",
        "[V] cat in a wood",
        "[V] cat here",
        "[V] cat there",
    ]
    with pytest.raises(ModelError, match="2 of 5 lines for the concept 'cat' name"):
        from_vlm(concept, picture(0), lambda _image, _question: "[V] cat")
