"""dopsd: on-policy self-distillation of few-step image models, on Ray and DeepSpeed."""

__version__ = "0.1.0"
