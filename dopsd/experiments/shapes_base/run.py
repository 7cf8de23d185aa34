"""The whole build: ``vae``, ``base``, ``turbo``, then the weights folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from dopsd.experiments.shapes_base import base, save, turbo, vae
from dopsd.files.storage import check_writable
from dopsd.ownership.ownership import OwnedFolder

STAGES = ("vae", "base", "turbo")

_WORK = (save.LOG, *(f"{name}.{end}" for name in (*STAGES, "pool") for end in ("ckpt", "tmp")))


def build(
    work: Path,
    out: Path,
    stage: str = "turbo",
    base_steps: int = base.STEPS,
    turbo_rounds: int = turbo.ROUNDS,
) -> Path:
    """Run every stage up to and including ``stage``, each from where it stopped, and write ``out``.

    ``work``: folder of checkpoints and of ``build.log``; the same one resumes. ``out``: the weights
    folder to write. ``stage``: `vae` writes no weights, `base` the undistilled model.
    ``base_steps`` and ``turbo_rounds`` are the lengths of the two schedules. Raises ConfigError for
    a folder that holds what no record shows to be ours.
    """
    if stage != "vae":
        check_writable("--out", str(out))
        save.owned(out).check(save.LOG)  # before days of training
    made = OwnedFolder(str(work), "build", "--work")
    made.check(*_WORK)
    made.claim(*_WORK)
    autoencoder = vae.train(work)
    if stage == "vae":
        return work
    trained = base.train(work, autoencoder, base_steps)
    few = None if stage == "base" else turbo.train(work, autoencoder, trained, turbo_rounds)
    save.write_pipeline(out, autoencoder, trained, few)
    save.owned(out).claim(save.LOG)
    shutil.copyfile(work / save.LOG, out / save.LOG)
    return out
