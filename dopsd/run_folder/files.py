"""The files of a run folder: the one place where their names stand."""

from __future__ import annotations

from dopsd.models.lora import STUDENT, TEACHER

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, ``step-000200/`` and so on."""
CONFIG_FILE = "config.yaml"
"""The resolved config; a folder that has it holds a run."""
LORA_FILE, TEACHER_FILE = "lora.safetensors", "teacher_lora.safetensors"
MODULES = {STUDENT: "modules.safetensors", TEACHER: "teacher_modules.safetensors"}
"""What `adapters: lora+modules` trains beside the LoRA."""
TRANSFORMERS = {STUDENT: "transformer", TEACHER: "teacher_transformer"}
"""Folders of `adapters: full`."""
METRICS_FILE, SUMMARY_FILE, TIMELINE_FILE = "metrics.jsonl", "summary.json", "timeline.jsonl"
LEDGER_FILE, SKIPPED_FILE = "ledger.jsonl", "skipped.jsonl"
REPORT_FILE = "report.html"
"""The run page."""
LOCK_FILE = "driver.json"
"""Names the driver that may write; a driver that ends takes it away."""
REQUEST_FILE = "checkpoint.request"
"""Whoever writes it asks for a checkpoint; it is removed when that is there."""
PREFLIGHT = "preflight"
"""Folder of the look before training."""
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's event file."""

FINAL = (SUMMARY_FILE, REPORT_FILE, REQUEST_FILE, *TRANSFORMERS.values())
"""What a resumed run writes anew: of a folder of shards no old one may stay among the new."""
OUTPUTS = (
    *(METRICS_FILE, TIMELINE_FILE, LORA_FILE, TEACHER_FILE, LEDGER_FILE, SKIPPED_FILE),
    *MODULES.values(),
    *(CHECKPOINTS, "debug", "preview", TENSORBOARD, "wandb", *FINAL),
)
"""All that a run leaves behind, but its config and its shards."""
