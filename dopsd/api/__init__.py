"""What the commands do, as functions: each raises a ``dopsd.errors.DopsdError`` with one line."""

from dopsd.api.pictures import evaluate, generate
from dopsd.api.training import library, plan, prepare, train

__all__ = ["evaluate", "generate", "library", "plan", "prepare", "train"]
