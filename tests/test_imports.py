"""What a process imports before it knows that it needs it: a second or more of CPU each, in every
process of a run. Readers, which need least, have a test of their own (data/test_read.py)."""

from __future__ import annotations

import json
import subprocess
import sys

LATE = (
    *("diffusers", "transformers", "peft", "deepspeed", "torchvision", "datasets", "scipy"),
    *("sklearn", "matplotlib", "torch._dynamo", "torch._inductor", "sympy"),
)
"""Imported where a model is loaded, an engine is built or a block is compiled."""
PROCESSES = {
    "driver": "dopsd.driver.train",
    "coordinator": "dopsd.coordinator.actor",
    "encoder": "dopsd.contexts.training",
    "rollout and teacher": "dopsd.rollout.worker",
    "learner": "dopsd.learner.train_loop",
}
_SCRIPT = """
import importlib, json, sys
modules, late = json.loads(sys.argv[1])
found = {}
for name, module in modules.items():
    importlib.import_module(module)
    found[name] = sorted(set(late) & sys.modules.keys())
print(json.dumps(found))
"""


def test_no_kind_of_process_imports_a_model_library_before_it_loads_a_model() -> None:
    """One after the other in one process, so that the first that does is named."""
    command = [sys.executable, "-c", _SCRIPT, json.dumps([PROCESSES, LATE])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(done.stdout) == {name: [] for name in PROCESSES}
