"""The job scripts find the package in the shipped working directory and pass everything on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

JOBS = ROOT / "jobs"


@pytest.mark.parametrize("command", ["train", "prepare", "preflight", "evaluate", "library"])
def test_job_works_where_the_package_is_not_installed(command: str, tmp_path: Path) -> None:
    shutil.copytree(JOBS, tmp_path / "jobs")
    (tmp_path / "dopsd" / "cli").mkdir(parents=True)
    for package in ("dopsd", "dopsd/cli"):
        (tmp_path / package / "__init__.py").touch()
    main = "def main(argv):\n    print(argv)\n    return 3\n"
    (tmp_path / "dopsd" / "cli" / "main.py").write_text(main)
    script = f"jobs/{command}.py"
    # Neither site-packages nor an environment's path, as in a bare image.
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", script, "configs/shapes.yaml", "learner.lr=2e-4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    words = [command, "configs/shapes.yaml", "learner.lr=2e-4"]
    # A training that is submitted again goes on.
    words += ["--resume-if-there"] * (command == "train")
    assert done.stdout.strip() == str(words)
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize(
    "said", ["--resume=runs/a", "--overwrite", "run.resume=never", "run.overwrite=true"]
)
def test_what_is_said_about_the_folder_holds(said: str, tmp_path: Path) -> None:
    shutil.copy(JOBS / "train.py", tmp_path)
    (tmp_path / "job.py").write_text("import sys\ndef run(command):\n    print(sys.argv[1:])\n")
    command = [sys.executable, "train.py", "shapes", said]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["shapes", said])
