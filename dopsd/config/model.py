"""The sections `model` and `lora` of the run config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dopsd.config.base import MOST, Positive, Quantize, Section, Whole

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelSection(Section):
    """The base, and how it is computed."""

    family: Literal["z_image", "flux2_klein", "krea2", "qwen_image"] = Field(
        "z_image", description="Model family."
    )
    base: str = Field(
        "shapes",
        description="Pipeline folder, hub id, or `s3://` folder that `dopsd fetch --to s3://...` "
        "filled (one copy on each node, under HF_HOME); `shapes` is the embedded tiny world.",
    )
    vlm: str | None = Field(
        None,
        description="VLM folder, hub id or `s3://` as of `base`, whose language model carries the "
        "text encoder's weights. Default: the folder `vlm` inside the base's folder, else the "
        "Qwen3-VL of the text encoder's size. Not of krea2 and qwen_image, whose text encoder is a "
        "VLM.",
    )
    revision: str | None = Field(None, description="Hub revision of the base.")
    vlm_revision: str | None = Field(None, description="Hub revision of the VLM.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Compute dtype of transformer and encoders; EMA stays fp32."
    )
    quantize: Quantize = Field(
        "none",
        description="The frozen base's blocks in fewer bits, in every role: `fp8` and `int8` "
        "(torchao) or `nf4` (bitsandbytes, GPUs alone); `pip install 'dopsd[quantize]'`. LoRA, "
        "optimizer and EMA stay as they are.",
    )
    attention: str | None = Field(
        None,
        description="diffusers attention backend of whatever does not train (e.g. `flash`, `sage`, "
        "`native`): rollout, teacher, pictures; default: its own. Learners: `learner.attention`.",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the transformer's blocks in inference workers: their first "
        "calls take minutes, later ones less; states and targets differ by rounding. Learners: "
        "`learner.compile`.",
    )
    merge: list[str] = Field(
        default_factory=list,
        description="LoRAs under the one that is trained, each `FILE` or `FILE@scale` (dopsd's, "
        "diffusers' or PEFT's keys, all of which must fit): added to the base's weights for "
        "training, not for drawing. So a training adapter is used.",
    )
    merge_sha256: list[Digest] = Field(
        default_factory=list,
        description="SHA-256 of each file of `model.merge`, filled in when a run begins: the run "
        "is resumed with the same files, wherever they lie. Given, the files must have them.",
    )
    draw_merged: bool = Field(
        False,
        description="Whether a run's own pictures (preflight, previews, prior samples) are drawn "
        "with `model.merge` too, as a few-step LoRA has to be.",
    )


class LoraSection(Section):
    """What is trained, of `adapters: lora` and `lora+modules`."""

    kind: Literal["lora", "lokr", "loha"] = Field(
        "lora",
        description="`lora`; `lokr`, a Kronecker product, of few weights; or `loha`, a Hadamard "
        "product, whose rank is up to the square of `lora.rank`. PEFT's formulas. The last two not "
        "under ZeRO-3 and not on `nf4`.",
    )
    rank: Positive = Field(64, description="LoRA rank.")
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(128, description="LoRA alpha.")
    targets: list[str] | Literal["default", "all-linear"] = Field(
        "default",
        description="Module name suffixes, `default` (the authors' list of the family) or "
        "`all-linear` (but for Z-Image: of the blocks). Every entry must match.",
    )
    modules_to_train: list[str] = Field(
        default_factory=lambda: ["norms", "embedders"],
        description="Of `adapters: lora+modules`: what is trained beside the LoRA. `norms`, "
        "`embedders`, or parts of module or parameter names. Every entry must match.",
    )
    dora: bool = Field(
        False,
        description="DoRA: direction by LoRA, magnitude by a vector of its own. Not under ZeRO-3; "
        "the file is for diffusers, ComfyUI leaves the magnitudes out.",
    )
    rank_stabilized: bool = Field(
        False, description="rsLoRA: scale by alpha / sqrt(rank), in place of alpha / rank."
    )
    factor: Annotated[Whole, Field(ge=-1, le=MOST)] = Field(
        8,
        description="Of `lora.kind: lokr`: into how many parts both sides of a layer are cut "
        "(PEFT's `decompose_factor`, where it divides them); -1: near the square root, the fewest "
        "weights.",
    )
    decompose_both: bool = Field(
        False, description="Of `lora.kind: lokr`: the small factor may be of low rank too."
    )
    init: str | None = Field(
        None,
        description="A LoRA (`.safetensors`, local or s3://) from which student and teacher begin, "
        "at its own strength: dopsd's, diffusers', ComfyUI's, kohya's, LyCORIS' or PEFT's keys. "
        "Kind, rank and modules must be those of this config. Default: the base.",
    )
    init_sha256: Digest | None = Field(
        None,
        description="SHA-256 of `lora.init`, filled in when a run begins: the run is resumed with "
        "the same file, wherever it lies. Given, the file must have it.",
    )

    @property
    def variant(self) -> dict[str, bool]:
        """What a plain LoRA may be beside."""
        return {"dora": self.dora, "rank_stabilized": self.rank_stabilized}
