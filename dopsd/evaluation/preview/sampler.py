"""The contact sheet of a run: target | base | student | teacher, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from dopsd.config import RunConfig
from dopsd.contexts import ContextEncoder, EncoderFactory
from dopsd.data.pictures.images import encode_png
from dopsd.data.sample import Sample
from dopsd.method.noise import NoisePurpose, batch_noise
from dopsd.models import FAMILIES
from dopsd.models.families.family import DTYPES
from dopsd.models.lora.layers import STUDENT, TEACHER, bind_parameters
from dopsd.models.lora.loading import load_adapter
from dopsd.models.lora.merge import drawn_merged, merge
from dopsd.models.lora.warm_start import for_pipeline, initial_lora
from dopsd.models.trained import TrainableParameters
from dopsd.models.transformer_folder import bind_files
from dopsd.records import Context
from dopsd.report.sheet import contact_sheet
from dopsd.rollout.pictures import Size, draw_prompt, prompt_id

BASE = "base"
Files = Sequence[Callable[[], bytes]]
"""What reads each of a role's safetensors files."""
TITLES = ("target", "base", "student")


class PreviewSampler:
    """The stock pipeline with the contexts of a few samples: draws them under any adapters.

    ``samples`` hold their images. Base and student draw under the student's context.
    The config's own prompts are drawn as pictures of ``size``.
    """

    def __init__(
        self,
        config: RunConfig,
        samples: list[Sample],
        device: str,
        size: Size = (0, 0),
    ) -> None:
        self.config, self.samples, self.device = config, samples, device
        self.prompts, self.size = list(config.preview.prompts), size
        self.dtype = DTYPES[config.model.dtype]
        self.family = FAMILIES[config.model.family](config.model.base, config.model.revision)
        encoder = EncoderFactory(config, device)()
        self.contexts = [encoder.encode([sample]) for sample in samples]
        """(student's, teacher's) of each sample."""
        self._prompt_contexts = encode_prompts(config, device, encoder)
        del encoder
        self.pipeline = self.family.load_pipeline(
            self.dtype,
            device,
            text_encoder=False,
            attention=config.model.attention,
            quantize=config.model.quantize,
        )
        merge(self.pipeline.transformer, self.family, drawn_merged(config))
        self._modules: dict[str, dict[str, Tensor]] = {}
        """By role: what was trained beside its LoRA; and the base's own."""
        self._files: dict[str, Files] = {}
        """By role: those of a whole transformer."""
        self._bound: Files = ()

    def begin(self) -> None:
        """Draw as the run began: under its warm start, where it has one, else as the base."""
        trained = TrainableParameters(self.config, self.family)
        if start := initial_lora(trained, self.pipeline.transformer):
            for role in (STUDENT, TEACHER):
                own = for_pipeline(self.config, start)
                load_adapter(self.pipeline, own, role)

    def load(self, student: Files, teacher: Files) -> None:
        """Take exported weights, in place of earlier ones, as any user would.

        A role's files are, by ``adapters`` of the config: a LoRA; a LoRA and the modules beside it;
        the files of a transformer, or none for the base's, which are read when it draws.
        """
        files: dict[str, Files] = {STUDENT: tuple(student), TEACHER: tuple(teacher)}
        if self.config.adapters == "full":
            self._files = files
            return
        if old := self.pipeline.get_list_adapters().get("transformer"):
            self.pipeline.delete_adapters(old)
        for role, (lora, *modules) in files.items():
            load_adapter(self.pipeline, load(lora()), role)
            self._take_modules(role, modules)

    def _take_modules(self, role: str, files: Files) -> None:
        for read in files:
            self._modules[role] = load(read())
            own = dict(self.pipeline.transformer.named_parameters())
            kept = {name: own[name].detach().clone() for name in self._modules[role]}
            self._modules.setdefault(BASE, kept)  # before any of them was replaced

    def use(self, role: str) -> None:
        """Draw as ``student`` or ``teacher``; as ``base`` (or before any ``load``) without."""
        if self.config.adapters == "full":
            self._use_whole(self._files.get(role, ()))
            return
        if not self.pipeline.get_list_adapters():
            return
        if role in self._modules:
            own = dict(self.pipeline.transformer.named_parameters())
            state = self._modules[role]
            with torch.no_grad():
                bind_parameters({name: own[name] for name in state}, state)
        if role == BASE:
            self.pipeline.disable_lora()
        else:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(role)

    def _use_whole(self, files: Files) -> None:
        """The weights of ``files``, or the base's own, in the one transformer that is there."""
        if files == self._bound:
            return
        self._bound = ()
        if not files:
            self.pipeline.transformer = None  # before the next is loaded
            self.pipeline.transformer = self.family.load_transformer(
                self.dtype, self.device, self.config.model.attention
            )
            return
        with torch.no_grad():
            bind_files(self.pipeline.transformer, "preview", files)
        self._bound = files

    def context(self, index: int, role: str) -> Context:
        """What ``role`` sees of a sample, one row in the pipeline's dtype."""
        return self.contexts[index][1 if role == TEACHER else 0].to(self.device, self.dtype)

    def noise(self, index: int) -> Tensor:
        """The sample's fixed noise, [1, C, h, w] float32: equal for every role and version."""
        sample = self.samples[index]
        shape = self.family.latent_shape(*sample.target.shape[:2])
        noise = batch_noise(self.config.run.seed, NoisePurpose.PREVIEW, (sample.sample_id,), shape)
        return noise.to(self.device)

    def generate(self, index: int, role: str) -> Image.Image:
        """The sample's picture by the stock sampler."""
        self.use(role)
        size = self.samples[index].target.shape[:2]
        context, steps = self.context(index, role), self.config.sampler_steps
        with torch.no_grad():
            images: Any = self.family.generate(
                self.pipeline, context, self.noise(index), steps, *size
            )
        image: Image.Image = images[0]
        return image

    def generate_prompt(self, index: int) -> Image.Image:
        """The student's picture of an own prompt, by the stock sampler; before any ``load`` the
        base's."""
        self.use(STUDENT)
        context = self._prompt_contexts[index]
        return draw_prompt(self.config, self.family, self.pipeline, context, index, self.size)

    def sheet(self) -> bytes:
        """PNG of the contact sheet of all samples."""
        numbers = range(len(self.samples))
        # One role after the other: of whole models one is there at a time.
        columns = [[self.generate(n, role) for n in numbers] for role in (BASE, STUDENT, TEACHER)]
        targets = [Image.fromarray(sample.target) for sample in self.samples]
        rows = [list(row) for row in zip(targets, *columns)]
        titles = (*TITLES, f"teacher (sees {self.config.context.needs.teacher_sees})")
        prompts = [sample.prompt for sample in self.samples]
        return encode_png(contact_sheet(titles, rows, prompts))


def encode_prompts(
    config: RunConfig,
    device: str,
    encoder: ContextEncoder | None = None,
) -> list[Context]:
    """The student's context of each own prompt, one row; by the run's own encoder unless given."""
    encoder = encoder or EncoderFactory(config, device)()
    samples = [
        Sample(prompt_id(index), prompt, None)
        for index, prompt in enumerate(config.preview.prompts)
    ]
    return [encoder.encode_student([sample]) for sample in samples]
