"""Attention backends of diffusers: which exist, which can train, and which take a padding mask."""

from __future__ import annotations

from typing import Any

from dopsd.errors import ModelError, message_line

TRAINABLE = (
    *("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"),
    *("flash", "flash_hub", "flex", "xformers"),
)
"""Those with a backward. Sage has none and cuts the gradients of queries, keys and values off
without a word; others raise at the first backward, after everything has been loaded."""
_MASKED = (
    *("native", "_native_cudnn", "_native_efficient", "_native_math", "_native_npu"),
    *("flash_varlen", "flash_varlen_hub", "_flash_varlen_3", "_flash_3_varlen_hub"),
    *("sage_varlen", "flex", "xformers"),
)
"""Those that take a mask, and so rows of unequal length in one batch; others raise."""


def check_attention(name: str | None, key: str = "model.attention", trains: bool = False) -> None:
    """Raises ModelError, in the name of ``key``, for an attention backend that diffusers does not
    know, or with ``trains`` for one that has no backward."""
    if name is None:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [backend.value for backend in AttentionBackendName]
    if trains and name not in TRAINABLE:
        what = "has no backward that is known to work" if name in known else "is none of diffusers"
        raise ModelError(
            f"{key}: {name!r} {what}, allowed: {', '.join(TRAINABLE)} "
            "(what does not train may have others: model.attention)"
        )
    if name not in known:
        public = ", ".join(sorted(backend for backend in known if not backend.startswith("_")))
        raise ModelError(f"{key}: {name!r}, allowed: a backend of diffusers: {public}")


def set_attention(transformer: Any, name: str | None, key: str = "model.attention") -> None:
    """Switch ``transformer`` to an attention backend of diffusers; None leaves its own.

    Raises ModelError for an unknown one, or one whose package or device is missing here.
    """
    check_attention(name, key)
    if name is None:
        return
    from diffusers.models.attention_dispatch import attention_backend

    try:
        # Or diffusers would make it that of every model of this process which has none of its own.
        with attention_backend(name):
            transformer.set_attention_backend(name)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ModelError(f"{key}: {name!r} cannot be used here: {message_line(error)}") from None


def takes_masks(name: str | None) -> bool:
    """Whether a backend, None for diffusers' own choice, takes a mask."""
    from diffusers.models.attention_dispatch import DIFFUSERS_ATTN_BACKEND, AttentionBackendName

    return AttentionBackendName(name or DIFFUSERS_ATTN_BACKEND).value in _MASKED


def attention_of(transformer: Any) -> str | None:
    """The backend that ``transformer`` was switched to; None: diffusers' own choice."""
    for module in transformer.modules():
        backend = getattr(getattr(module, "processor", None), "_attention_backend", None)
        if backend is not None:
            return str(getattr(backend, "value", backend))
    return None
