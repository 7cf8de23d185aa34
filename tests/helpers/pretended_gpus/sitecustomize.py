"""Pretends to every Python process that has this folder in PYTHONPATH that the machine has GPUs.

torch then says what it says on such a machine, and fails at the first tensor that is put there:
who computes on the CPU must not be led astray. CUDA_VISIBLE_DEVICES counts as it does in earnest.
"""

import importlib.abc
import importlib.util
import os
import sys

GPUS = 2


class _Pretend(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.device_count = _count
            module.is_available = lambda: _count() > 0

        spec.loader.exec_module = exec_module
        return spec


def _count():
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return GPUS if shown is None else len([device for device in shown.split(",") if device])


sys.meta_path.insert(0, _Pretend())
