"""S3, as far as a config uses it: what a run writes, reads and removes there."""

from __future__ import annotations

import time
import uuid

from dopsd.config import RunConfig
from dopsd.data.shapes_source import SHAPES
from dopsd.driver.doctor.finding import Finding, ok
from dopsd.errors import DopsdError, message_line
from dopsd.files import storage

_WHO = "credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), AWS_ENDPOINT_URL and the bucket"


def check_s3(config: RunConfig) -> list[Finding]:
    """One finding for each key that names a place on S3."""
    data = config.data
    written = {"run.folder": config.run.folder, "data.shards": data.shards}
    read = {"data.source": data.source, "data.prior.prompts": data.prior.prompts}
    return [
        *(_round_trip(key, path) for key, path in written.items() if _on_s3(path)),
        *(_readable(key, path) for key, path in read.items() if _on_s3(path)),
    ]


def _on_s3(path: str | None) -> bool:
    return path is not None and not path.startswith(SHAPES) and storage.is_remote(path)


def _round_trip(key: str, folder: str | None) -> Finding:
    """Write a small object of a name of its own, read it, remove it."""
    assert folder is not None
    path = storage.join(folder, f".dopsd-doctor-{uuid.uuid4().hex}")
    began, name = time.monotonic(), f"s3 {key}"
    try:
        storage.write_bytes(path, path.encode())
    except (DopsdError, OSError) as error:
        return Finding(name, "stop", f"cannot write: {message_line(error)}", f"check {_WHO}")
    remedy = f"allow s3:GetObject and s3:DeleteObject; remove {path} by hand"
    try:
        same = storage.read_bytes(path) == path.encode()
        storage.remove(path)
    except (DopsdError, OSError) as error:
        return Finding(name, "stop", f"written, then: {message_line(error)}", remedy)
    if not same or storage.exists(path):
        return Finding(name, "stop", f"{folder}: reads other bytes, or keeps what is removed")
    took = time.monotonic() - began
    return ok(name, f"{folder}: written, read and removed in {took:.1f} s")


def _readable(key: str, path: str | None) -> Finding:
    assert path is not None
    name = f"s3 {key}"
    try:
        if storage.exists(path):
            return ok(name, f"{path}: there")
    except (DopsdError, OSError) as error:
        return Finding(name, "stop", message_line(error), f"check {_WHO}")
    return Finding(name, "stop", f"{path}: no such file or folder", f"check {key}")
