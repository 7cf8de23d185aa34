"""What a transformer is made of, from its config file alone: blocks, their linear layers, and who
passes through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dopsd.models.lora.factors import Factors

Tokens = Literal["image", "text", "both", "sample"]
"""Whom a layer is applied to; ``sample``: once for each sample, as modulation is."""


@dataclass(frozen=True)
class Linear:
    name: str
    """Inside its block, as LoRA targets name it."""
    inputs: int
    outputs: int
    over: Tokens
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs + self.outputs * self.bias


@dataclass(frozen=True)
class Stack:
    """``count`` equal blocks whose attention is over all tokens of the kind ``over``."""

    kind: str
    count: int
    over: Tokens
    linears: tuple[Linear, ...]
    norms: int
    """Weights of the normalisation layers of a block."""
    targets: tuple[str, ...] = ()
    """What `lora.targets: default` adapts in it."""
    times: int = 1
    """How often a token passes through it: once for each of a stack of features."""
    repeated: bool = True
    """Whether gradient checkpointing recomputes it: diffusers' ``_repeated_blocks``."""

    @property
    def weights(self) -> int:
        return self.count * (sum(linear.weights for linear in self.linears) + self.norms)


@dataclass(frozen=True)
class Architecture:
    """Of one transformer."""

    family: str
    width: int
    stacks: tuple[Stack, ...]
    outside: tuple[Linear, ...]
    """Linear layers outside of the blocks."""
    other: int
    """Weights that are neither in a block nor in a linear layer."""
    channels: int
    """Of the latents."""
    text_width: int
    patch: int
    """Latents along one side that one token stands for."""
    multiple: int
    """Tokens of image and of text are filled up to a multiple of this."""

    @property
    def weights(self) -> int:
        """How many parameters it has."""
        outside = sum(linear.weights for linear in self.outside)
        return sum(stack.weights for stack in self.stacks) + outside + self.other

    @property
    def blocks(self) -> int:
        """Those that may be recomputed."""
        return sum(stack.count for stack in self.stacks if stack.repeated)

    def recomputed(self, every: int) -> int:
        """How many blocks each ``every``-th is; 0 is none."""
        return len(range(0, self.blocks, every)) if every else 0

    def adapted(self, targets: list[str] | str) -> Iterator[tuple[Stack, Linear]]:
        """Linear layers of the blocks that ``lora.targets`` stands for (a list: name suffixes)."""
        for stack in self.stacks:
            for linear in stack.linears:
                if isinstance(targets, list):
                    chosen = any(f".{linear.name}".endswith(f".{target}") for target in targets)
                elif targets == "default":
                    chosen = linear.name in stack.targets
                else:
                    chosen = True
                if chosen:
                    yield stack, linear

    def lora_weights(self, targets: list[str] | str, factors: Factors) -> int:
        """How many parameters one adapter has."""
        return sum(
            stack.count * factors.numel(linear.outputs, linear.inputs)
            for stack, linear in self.adapted(targets)
        )


def architecture(family: str, config: dict[str, Any]) -> Architecture:
    """``config``: of the transformer, as diffusers writes it."""
    made = {
        "z_image": _z_image,
        "flux2_klein": _flux2_klein,
        "krea2": _krea2,
        "qwen_image": _qwen_image,
    }
    return made[family](config)


def _z_image(config: dict[str, Any]) -> Architecture:
    width, hidden, modulation = config["dim"], int(config["dim"] / 3 * 8), min(config["dim"], 256)

    def stack(kind: str, count: int, over: Tokens, modulated: bool) -> Stack:
        keys = width // config["n_heads"] * config["n_kv_heads"]
        layers = [
            Linear("attention.to_q", width, width, over),
            Linear("attention.to_k", width, keys, over),
            Linear("attention.to_v", width, keys, over),
            Linear("attention.to_out.0", width, width, over),
            Linear("feed_forward.w1", width, hidden, over),
            Linear("feed_forward.w2", hidden, width, over),
            Linear("feed_forward.w3", width, hidden, over),
        ]
        targets = tuple(layer.name for layer in layers)
        if modulated:
            layers.append(Linear("adaLN_modulation.0", modulation, 4 * width, "sample", bias=True))
        norms = 4 * width + 2 * (width // config["n_heads"])
        return Stack(kind, count, over, tuple(layers), norms, targets)

    refiners, patch = config["n_refiner_layers"], 4 * config["in_channels"]
    return Architecture(
        "z_image",
        width,
        (
            stack("layer", config["n_layers"], "both", True),
            stack("layer", refiners, "image", True),
            stack("layer", refiners, "text", False),
        ),
        (
            Linear("x_embedder", patch, width, "image", bias=True),
            Linear("cap_embedder", config["cap_feat_dim"], width, "text", bias=True),
            Linear("t_embedder.0", 256, 1024, "sample", bias=True),
            Linear("t_embedder.2", 1024, modulation, "sample", bias=True),
            Linear("final_layer.adaLN", modulation, width, "sample", bias=True),
            Linear("final_layer", width, patch, "image", bias=True),
        ),
        other=config["cap_feat_dim"] + 2 * width,
        channels=config["in_channels"],
        text_width=config["cap_feat_dim"],
        patch=2,
        multiple=32,
    )


def _flux2_klein(config: dict[str, Any]) -> Architecture:
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    hidden, channels = int(config["mlp_ratio"] * width), config["in_channels"]
    image = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
    text = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
    double = (
        *(Linear(name, width, width, "image") for name in image),
        Linear("ff.linear_in", width, 2 * hidden, "image"),
        Linear("ff.linear_out", hidden, width, "image"),
        *(Linear(name, width, width, "text") for name in text),
        Linear("ff_context.linear_in", width, 2 * hidden, "text"),
        Linear("ff_context.linear_out", hidden, width, "text"),
    )
    single = (
        Linear("attn.to_qkv_mlp_proj", width, 3 * width + 2 * hidden, "both"),
        Linear("attn.to_out", width + hidden, width, "both"),
    )
    targets = tuple(layer.name for layer in double)
    time, context = config["timestep_guidance_channels"], config["joint_attention_dim"]
    return Architecture(
        "flux2_klein",
        width,
        (
            Stack("double", config["num_layers"], "both", double, 4 * head, targets),
            Stack("single", config["num_single_layers"], "both", single, 2 * head),
        ),
        (
            Linear("x_embedder", channels, width, "image"),
            Linear("context_embedder", context, width, "text"),
            Linear("time_embedder.0", time, width, "sample"),
            Linear("time_embedder.2", width, width, "sample"),
            Linear("modulation", width, 15 * width, "sample"),  # 6 + 6 double, 3 single
            Linear("norm_out", width, 2 * width, "sample"),
            Linear("proj_out", width, channels, "image"),
        ),
        other=0,
        channels=channels,
        text_width=context,
        patch=1,
        multiple=1,
    )


def _krea2(config: dict[str, Any]) -> Architecture:
    head, heads = config["attention_head_dim"], config["num_attention_heads"]
    width, channels, layers = heads * head, config["in_channels"], config["num_text_layers"]
    text, text_heads = config["text_hidden_dim"], config["text_num_attention_heads"]

    def linears(wide: int, keys: int, hidden: int, over: Tokens) -> tuple[Linear, ...]:
        return (
            Linear("attn.to_q", wide, wide, over),
            Linear("attn.to_k", wide, keys, over),
            Linear("attn.to_v", wide, keys, over),
            Linear("attn.to_out.0", wide, wide, over),
            Linear("ff.gate", wide, hidden, over),
            Linear("ff.up", wide, hidden, over),
            Linear("ff.down", hidden, wide, over),
            Linear("attn.to_gate", wide, wide, over),
        )

    whole = linears(
        width, config["num_key_value_heads"] * head, config["intermediate_size"], "both"
    )
    text_head = text // text_heads
    text_keys = config["text_num_key_value_heads"] * text_head
    fusion = linears(text, text_keys, config["text_intermediate_size"], "text")
    targets = tuple(layer.name for layer in whole[:-1])
    norms = 2 * text + 2 * text_head
    return Architecture(
        "krea2",
        width,
        (
            Stack("layer", config["num_layers"], "both", whole, 8 * width + 2 * head, targets),
            Stack(
                "layerwise",
                config["num_layerwise_text_blocks"],
                "text",
                fusion,
                norms,
                targets,
                times=layers,
                repeated=False,
            ),
            Stack(
                "refiner",
                config["num_refiner_text_blocks"],
                "text",
                fusion,
                norms,
                targets,
                repeated=False,
            ),
        ),
        (
            Linear("img_in", channels, width, "image", bias=True),
            Linear("txt_in.linear_1", text, width, "text", bias=True),
            Linear("txt_in.linear_2", width, width, "text", bias=True),
            Linear("time_embed.linear_1", config["timestep_embed_dim"], width, "sample", bias=True),
            Linear("time_embed.linear_2", width, width, "sample", bias=True),
            Linear("time_mod_proj", width, 6 * width, "sample", bias=True),
            Linear("final_layer.linear", width, channels, "image", bias=True),
        ),
        other=layers + text + 3 * width,
        channels=channels,
        text_width=layers * text,
        patch=1,
        multiple=1,
    )


def _qwen_image(config: dict[str, Any]) -> Architecture:
    head = config["attention_head_dim"]
    width, channels = config["num_attention_heads"] * head, config["in_channels"]
    hidden, text = config["mlp_ratio"] * width, config["context_in_dim"]
    linears = (
        *(
            Linear(name, width, width, "both")
            for name in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
        ),
        Linear("img_mlp.proj", width, hidden, "both"),
        Linear("img_mlp.gate_layer", width, hidden, "both"),
        Linear("img_mlp.out", hidden, width, "both"),
    )
    targets = tuple(layer.name for layer in linears)
    return Architecture(
        "qwen_image",
        width,
        (Stack("layer", config["num_layers"], "both", linears, 2 * head, targets),),
        (
            Linear("img_in", channels, width, "image"),
            Linear("txt_in.in_layer", text, width, "text"),
            Linear("txt_in.out_layer", width, width, "text"),
            Linear("time_text_embed.linear_1", 256, width, "sample"),
            Linear("time_text_embed.linear_2", width, width, "sample"),
            Linear("modulation", width, 4 * width, "sample"),
            Linear("norm_out", width, width, "sample"),
            Linear("proj_out", width, config["out_channels"], "image"),
        ),
        other=text,
        channels=channels,
        text_width=text,
        patch=1,
        multiple=1,
    )
