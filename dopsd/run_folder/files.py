"""The files of a run folder: the one place where their names stand."""

from __future__ import annotations

from dataclasses import dataclass

from dopsd.config import RunConfig, stored_config
from dopsd.data.manifest import has_manifest
from dopsd.files import storage
from dopsd.models.lora.layers import STUDENT, TEACHER

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, ``step-000200/`` and so on."""
CONFIG_FILE = "config.yaml"
"""The resolved config; a folder that has it holds a run."""
LORA_FILE, DIFFUSERS_FILE = "lora.safetensors", "pytorch_lora_weights.safetensors"
"""The student's LoRA, and the same under the name that `load_lora_weights(RUN)` looks for."""
TEACHER_FOLDER = "teacher"
"""A folder of its own: a loader that takes any LoRA of the run folder finds the student's."""
TEACHER_FILE = f"{TEACHER_FOLDER}/{LORA_FILE}"
MODULES = {STUDENT: "modules.safetensors", TEACHER: f"{TEACHER_FOLDER}/modules.safetensors"}
"""What `adapters: lora+modules` trains beside the LoRA."""
OLD_TEACHER = ("teacher_lora.safetensors", "teacher_modules.safetensors")
"""Where older versions of dopsd put the teacher's."""
TRANSFORMERS = {STUDENT: "transformer", TEACHER: "teacher_transformer"}
"""Folders of `adapters: full`."""
METRICS_FILE, SUMMARY_FILE, TIMELINE_FILE = "metrics.jsonl", "summary.json", "timeline.jsonl"
LEDGER_FILE, SKIPPED_FILE = "ledger.jsonl", "skipped.jsonl"
REPORT_FILE = "report.html"
"""The run page."""
REQUEST_FILE = "checkpoint.request"
"""Whoever writes it asks for a checkpoint; it is removed when that is there."""
PREFLIGHT = "preflight"
"""Folder of the look before training."""
PREFLIGHT_SHEET, PREFLIGHT_REPORT = f"{PREFLIGHT}/contact_sheet.png", f"{PREFLIGHT}/report.json"
PREVIEW = "preview"
"""Folder of the run's pictures and what they are drawn from."""
PREVIEW_SHEET = f"{PREVIEW}/contact_sheet.png"
NOTICES_FILE = "notices.txt"
"""What people were told, with the times."""
LOGS = "logs"
"""Folder of the ends of the logs of processes that died."""
DEATH_LOG_MARK = "dopsd: "
"""How each of them begins."""
DEBUG = "debug"
"""Folder of recorded trajectories and the weights behind them."""
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's event file."""
WANDB_FILE = "wandb.json"
"""Which of W&B's runs this one is."""
SHARDS = "shards"
"""Folder of the prepared shards of a run without ``data.shards``."""


def weights_file(folder: str, version: int, adapter: str, modules: bool = False) -> str:
    """Path of an adapter's weights of some version inside the run folder's ``folder``, in the form
    of the exported LoRA; of ``modules``, what was trained beside it."""
    kind = ".modules" if modules else ""
    return f"{folder}/weights/v{version:06d}.{adapter}{kind}.safetensors"


FINAL = (SUMMARY_FILE, REPORT_FILE, REQUEST_FILE, WANDB_FILE, *OLD_TEACHER, *TRANSFORMERS.values())
"""What a resumed run writes anew: of a folder of shards no old one may stay among the new."""


@dataclass(frozen=True)
class RunFolder:
    """A run's files by the names above, in a local folder or under ``s3://``."""

    path: str

    def file(self, name: str) -> str:
        return storage.join(self.path, name)

    def has(self, name: str) -> bool:
        return storage.exists(self.file(name))

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError or StorageError."""
        return storage.read_bytes(self.file(name))

    def write(self, name: str, payload: bytes) -> None:
        """Complete or not at all."""
        storage.write_bytes(self.file(name), payload)

    def remove(self, name: str) -> None:
        """A file; a missing one is no error."""
        storage.remove(self.file(name))

    @property
    def exists(self) -> bool:
        """It holds a run."""
        return self.has(CONFIG_FILE)

    @property
    def is_finished(self) -> bool:
        return self.has(SUMMARY_FILE)

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return self.file(CHECKPOINTS)

    def config(self, overrides: list[str] | None = None) -> RunConfig:
        """The run's own config. Raises ConfigError, which names its file, for one of another
        dopsd."""
        return stored_config(self.file(CONFIG_FILE), overrides)

    def shards(self, config: RunConfig) -> str:
        """Where the run's shards are now: a run folder may have been copied from where it was
        written, so its own come first."""
        own = self.file(SHARDS)
        return own if has_manifest(own) else config.shards
