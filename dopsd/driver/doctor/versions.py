"""The installed libraries against those that the tests ran with."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dopsd.config import RunConfig
from dopsd.driver.doctor.finding import Finding, ok
from dopsd.models.torchvision import torchvision_problem

TESTED_PYTHON = (3, 11)
_PACKAGE = Path(__file__).parents[2]


def check_versions(config: RunConfig | None) -> list[Finding]:
    return [_python(), _libraries(), _torchvision(config), *_optional(config)]


def tested_set() -> dict[str, str]:
    """{distribution: version} of constraints.txt: in a wheel inside the package, in the repository
    beside it."""
    inside = _PACKAGE / "constraints.txt"
    file = inside if inside.is_file() else _PACKAGE.parent / "constraints.txt"
    pins = re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def _python() -> Finding:
    words = platform.python_version()
    if sys.version_info[:2] != TESTED_PYTHON:
        tested = ".".join(map(str, TESTED_PYTHON))
        return Finding("python", "do", words, f"tested with {tested}")
    return ok("python", words)


def _libraries() -> Finding:
    """Direct dependencies: outside of their range is fatal, beside the tested version is told."""
    tested, refused, other = tested_set(), [], []
    try:
        declared = metadata.requires("dopsd") or []
    except metadata.PackageNotFoundError:
        return Finding("libraries", "do", "dopsd is not installed", "pip install -e .")
    for requirement in map(Requirement, declared):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            refused.append(f"{name} is missing")
            continue
        pinned = tested.get(canonicalize_name(name))
        if not requirement.specifier.contains(version, prereleases=True):
            refused.append(f"{name} {version}, allowed: {requirement.specifier}")
        elif pinned is not None and version.partition("+")[0] != pinned:
            other.append(f"{name} {version} (tested: {pinned})")
    remedy = "pip install -c constraints.txt -e ."
    if refused:
        return Finding("libraries", "stop", "; ".join(refused), remedy)
    if other:
        return Finding("libraries", "do", ", ".join(other), remedy)
    return ok("libraries", f"the {len(declared)} tested versions")


def _torchvision(config: RunConfig | None) -> Finding:
    problem = torchvision_problem()
    if problem is None:
        return ok("torchvision", "fits torch, or is not installed")
    looks = config is None or config.context.needs.vlm
    remedy = "install the torchvision of torch's release and build, or pip uninstall torchvision"
    return Finding("torchvision", "stop" if looks else "do", problem, remedy)


def _optional(config: RunConfig | None) -> list[Finding]:
    """Libraries that one key of the config asks for."""
    if config is None:
        return []
    kinds = {config.model.quantize, config.encoder.quantize}
    wanted = {
        "bitsandbytes": config.learner.optimizer == "adamw8bit" or "nf4" in kinds,
        "torchao": bool(kinds & {"fp8", "int8"}),
    }
    missing = [n for n, want in wanted.items() if want and importlib.util.find_spec(n) is None]
    return [
        Finding(name, "stop", "missing, and the config uses it", f"pip install {name}")
        for name in missing
    ]
