"""The package outside the repository: a wheel holds all that a command needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, so that nothing stays of an earlier build."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    run([sys.executable, "-m", *build, str(folder / "source")], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and the libraries of this one behind it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # a wheel's files lie in it as they are installed
    # Only what is listed here is added: no .pth file in there is read, so that an editable
    # installation of this repository does not come first.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(command: list[str], folder: Path) -> str:
    """Outside the repository, without a path to it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_and_every_file_beside_the_code_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "dopsd"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    assert len(modules) > 200 and modules <= names
    for data in ("dopsd/shapes/weights", "dopsd/report/assets"):
        files = {p.relative_to(ROOT).as_posix() for p in (ROOT / data).rglob("*") if p.is_file()}
        assert len(files) > 2 and files <= names
    assert "dopsd/constraints.txt" in names  # the tested set, which `dopsd doctor` compares with
    for config in (ROOT / "configs").rglob("*.*"):
        assert f"dopsd/configs/{config.relative_to(ROOT / 'configs').as_posix()}" in names


def test_recipes_and_presets_are_read_by_name(python: Path, tmp_path: Path) -> None:
    dopsd = [str(python), "-m", "dopsd"]
    assert run([*dopsd, "config"], tmp_path) == run([*dopsd, "config", "shapes"], tmp_path)
    assert "family: z_image" in run([*dopsd, "config", "z_image_turbo_lora"], tmp_path)
    listed = run([*dopsd, "config", "--list"], tmp_path).split()
    assert listed == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    script = (
        "import json, dopsd; from dopsd.config.recipes import configs_folder;"
        "from dopsd.learner.zero.engine import read_preset;"
        "names = sorted(p.stem for p in (configs_folder() / 'deepspeed').glob('*.json'));"
        "print(json.dumps([dopsd.__file__, {name: read_preset(name) for name in names}]))"
    )
    file, presets = json.loads(run([str(python), "-c", script], tmp_path).splitlines()[-1])
    assert Path(file).is_relative_to(python.parents[1]), "the repository came first"
    assert presets == {
        path.stem: json.loads(path.read_text())
        for path in (ROOT / "configs/deepspeed").glob("*.json")
    }


def test_it_is_found_from_any_folder(wheel: Path, python: Path, tmp_path: Path) -> None:
    """Also beside a folder of the package's name, such as a checkout's parent."""
    (tmp_path / "dopsd" / "docs").mkdir(parents=True)
    assert run([str(python), "-m", "dopsd", "--version"], tmp_path).strip()
    (entries,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entries).decode()
    assert "dopsd = dopsd.__main__:main" in text
