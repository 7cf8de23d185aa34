"""The models of a config: in a local folder, on S3, in the cache, or to be had from the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dopsd import shown
from dopsd.config import RunConfig
from dopsd.driver.doctor.finding import Finding, Level, ok
from dopsd.errors import ModelError, message_line
from dopsd.evaluation.metrics import make_distance
from dopsd.files.disk import megabytes
from dopsd.files.storage import is_remote
from dopsd.models.hub import licence_remedy
from dopsd.models.pretrained import resolve_vlm
from dopsd.models.stored import stored_bytes
from dopsd.plan.bases import shipped_folder
from dopsd.ray_cluster.connect import starts_here

_SECONDS = 20.0


@dataclass(frozen=True)
class Model:
    key: str
    """That names it in the config."""
    name: str
    """Folder, hub id or s3://."""
    revision: str | None = None
    needed: bool = True
    """Whether a run stops without it."""


def models_of(config: RunConfig) -> list[Model]:
    """Raises ModelError when the base does not tell its VLM."""
    model = config.model
    found = [Model("model.base", model.base, model.revision)]
    if config.separate_vlm and (model.vlm or model.base != "shapes"):
        vlm = model.vlm or resolve_vlm(shipped_folder(model.base), None, model.revision)
        found.append(Model("model.vlm", vlm, model.vlm_revision))
    preflight = config.preflight
    metric = preflight.metric if preflight.metric != "auto" else preflight.model and "dino"
    if preflight.mode != "off" and metric in ("dino", "clip"):
        name = make_distance(metric, preflight.model).model
        found.append(Model("preflight.model", str(name), needed=preflight.mode == "strict"))
    return [each for each in found if each.name != "shapes"]


def check_models(config: RunConfig) -> list[Finding]:
    """One finding for each model; no secret is in it."""
    try:
        models = models_of(config)
    except (ModelError, OSError) as error:
        return [Finding("model.vlm", "stop", message_line(error))]
    return [_check(model) for model in models] or [ok("models", "the embedded ones: none to fetch")]


def is_cached(model: Model) -> bool:
    """Whether a snapshot of it lies on this machine."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(model.name, revision=model.revision, local_files_only=True)
    except (OSError, ValueError):
        return False
    return any(Path(folder).rglob("*.safetensors"))


def _check(model: Model) -> Finding:
    folder = os.path.expanduser(model.name)
    if os.path.isdir(folder):
        configs = [
            name
            for name in ("model_index.json", "config.json")
            if os.path.isfile(os.path.join(folder, name))
        ]
        if configs:
            return ok(model.key, f"{model.name}: a folder with {configs[0]}")
        return _bad(model, "a folder without model_index.json or config.json", "check the path")
    if is_remote(model.name):
        try:
            size = stored_bytes(model.name, model.key)
        except ModelError as error:
            words = message_line(error).removeprefix(f"{model.key}: ")
            return Finding(model.key, "stop", words, "`dopsd fetch CONFIG --to s3://...`")
        return ok(model.key, f"{model.name}: {megabytes(size)}, with digests")
    if model.name.startswith((".", "/", "~")) or model.name.count("/") != 1:
        return _bad(model, "no folder and no hub id (owner/name)", "check the path")
    cached = is_cached(model)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        if cached:
            return ok(model.key, f"{model.name}: in the cache (HF_HUB_OFFLINE is set)")
        return _bad(model, "not in the cache, and HF_HUB_OFFLINE is set", "unset it to download")
    return _ask(model, cached)


def _ask(model: Model, cached: bool) -> Finding:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    token = "with a token" if get_token() else "without a token (HF_TOKEN)"
    where = "; in the cache" if cached else ""
    try:
        info = HfApi().model_info(model.name, revision=model.revision, timeout=_SECONDS)
        HfApi().auth_check(model.name)
    except GatedRepoError:
        return _bad(model, f"gated, and not open {token}", licence_remedy(model.name))
    except RevisionNotFoundError:
        return _bad(model, f"no revision {shown.value(model.revision)}", "check the revision")
    except RepositoryNotFoundError:
        remedy = "check the name; of a private one, HF_TOKEN"
        return _bad(model, f"no such repository {token}", remedy)
    except (HfHubHTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            return _bad(model, "the hub refuses the token", "make a new one, and set HF_TOKEN")
        if cached:
            return ok(model.key, f"{model.name}: in the cache; the hub does not answer")
        words = f"the hub does not answer ({shown.line(message_line(error), 200)})"
        return _bad(model, words, "network or HF_ENDPOINT; or a local folder as the model")
    if info.gated and "HF_TOKEN" not in os.environ and not starts_here():
        words = f"{model.name}: gated, open with the token of this machine"
        return Finding(model.key, "do", words, "set HF_TOKEN in every node's environment too")
    return ok(model.key, f"{model.name}: to be had {token}{where}")


def _bad(model: Model, words: str, remedy: str) -> Finding:
    level: Level = "stop" if model.needed else "do"
    return Finding(model.key, level, f"{model.name}: {words}", remedy)
