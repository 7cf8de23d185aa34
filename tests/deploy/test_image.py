"""The image: facts of its Dockerfile. What it builds is replayed in tests/test_wheel.py."""

from __future__ import annotations

import fnmatch
import itertools
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.paths import ROOT

DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages() -> dict[str, str]:
    """Text of each stage, by its name; the image itself is ""."""
    _, *parts = re.split(r"^FROM (.+)$", DOCKERFILE, flags=re.MULTILINE)
    heads, texts = parts[::2], parts[1::2]
    assert {head.partition(" AS ")[0] for head in heads} == {"${BASE}"}
    return {head.partition(" AS ")[2]: text for head, text in zip(heads, texts)}


def test_the_base_is_ray_without_a_cuda_of_its_own() -> None:
    base = re.search(r"^ARG BASE=rayproject/ray:(\S+)-py311-cpu$", DOCKERFILE, re.MULTILINE)
    assert base is not None and base[1] == pins()["ray"]
    assert "@sha256:" in DOCKERFILE and "R580" in DOCKERFILE, "says how to pin it, and the driver"


def test_the_image_carries_the_wheel_and_no_sources() -> None:
    image = stages()[""]
    copied = re.findall(r"^COPY (.+)$", image, re.MULTILINE)
    assert copied == [
        "constraints.txt /tmp/",
        "--from=requirements /home/ray/requirements.txt /tmp/",
        "--from=wheel /home/ray/wheels /tmp/wheels",
    ]
    assert "-e ." not in DOCKERFILE and "--no-deps --no-index /tmp/wheels/*.whl" in image
    # Cached: what changes with the code comes last.
    assert image.index("requirements.txt") < image.index("--from=wheel")


def test_it_is_not_root_and_takes_the_tested_set() -> None:
    image = stages()[""]
    assert re.findall(r"^USER (\S+)$", image, re.MULTILINE) == ["1000"]
    installs = [line for line in re.split(r"&&|\n", image) if "pip install" in line]
    assert len(installs) == 3
    for line in installs:
        assert "-c /tmp/constraints.txt" in line or "--no-index" in line, line


def test_cuda_and_extras_are_arguments() -> None:
    image = stages()[""]
    assert {"TORCH_INDEX", "EXTRAS"} == set(re.findall(r'^ARG (\w+)=""$', image, re.MULTILINE))
    command = 'echo ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch ${EXTRAS}'
    assert command.removeprefix("echo ").split(" torch")[0] in image
    for environment, words in (
        ({}, "torch"),
        ({"TORCH_INDEX": "URL", "EXTRAS": "a b"}, "--index-url URL torch a b"),
    ):
        done = subprocess.run(
            ["sh", "-c", command], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == words


def test_requirements_are_those_of_the_package() -> None:
    script = ROOT / "cluster" / "requirements.py"
    command = [sys.executable, str(script), str(ROOT / "pyproject.toml")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == project()["dependencies"]


def test_what_is_copied_exists_and_is_in_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    kept = [line[1:] for line in lines if line.startswith("!")]
    sources = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        sources |= {part for part in line.split()[:-1] if not part.startswith("--")}
    for source in sources:
        assert (ROOT / source).exists(), source
    assert sources == set(kept), "nothing more, nothing less"
    assert not any(fnmatch.fnmatch("tests/conftest.py", pattern) for pattern in kept)


def test_the_tested_set_pins_every_dependency_within_its_range() -> None:
    wanted = [
        *project()["dependencies"],
        *itertools.chain(*project()["optional-dependencies"].values()),
    ]
    tested = {canonicalize_name(name): version for name, version in pins().items()}
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name != project()["name"]:
            version = tested[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{line}: {version}"
            assert "+" not in version
