"""Where nothing can be written is said before anything is spent, in the name of the option."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dopsd.cli.main import main
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.ownership.ownership import OwnedFolder

LONG = "x" * 300
NO_DISK = "/proc/dopsd"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (NO_DISK, r"--out: /proc/dopsd cannot be made, .* /proc"),
        (f"{NO_DISK}/a/b", r"--out: /proc/dopsd/a/b cannot be made, .* /proc"),
        ("{tmp}/file", r"is no folder; allowed: a folder that can be written"),
        ("{tmp}/link", r"/link is no folder"),
        (f"{{tmp}}/{LONG}/a", r"a name in it has 300 bytes, allowed: 255"),
        ("{tmp}" + "/" + "ä" * 128, r"a name in it has 256 bytes"),
        ("{tmp}" + f"/{'y' * 200}" * 25, r"its path has \d+ bytes, allowed: 3696"),
        ("{tmp}/a\0b", r"it holds a NUL character"),
    ],
)
def test_a_folder(tmp_path: Path, folder: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ConfigError, match=said) as refused:
        storage.check_writable("--out", folder.format(tmp=tmp_path))
    assert str(refused.value).startswith("--out: ") and len(str(refused.value)) < 600
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/proc/list.jsonl", r"--out: /proc/list.jsonl cannot be written, .* /proc"),
        ("{tmp}/folder", "it is the name of a folder"),
        ("{tmp}/folder/", "it is the name of a folder"),
        ("{tmp}/file/a.yaml", r"/file is no folder"),
        (f"{{tmp}}/{'x' * 240}.yaml", r"a name in it has 245 bytes, allowed: 231"),
    ],
)
def test_a_file(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=said):
        storage.check_file("--out", path.format(tmp=tmp_path))


def test_a_name_that_is_just_short_enough_can_be_written(tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 231))
    storage.check_file("--out", path)
    storage.write_bytes(path, b"y")
    storage.check_file("--out", path)
    storage.check_writable("--out", str(tmp_path / "new" / ("z" * 255)))
    assert os.listdir(tmp_path) == ["x" * 231]


@pytest.mark.parametrize("said", [0, -1, OSError(95, "not supported")])
def test_a_disk_that_does_not_say_how_long_names_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int | OSError
) -> None:
    def pathconf(folder: str, name: str) -> int:
        if isinstance(said, OSError):
            raise said
        return said

    monkeypatch.setattr(os, "pathconf", pathconf)
    storage.check_writable("--out", str(tmp_path / "new" / "run"))
    with pytest.raises(ConfigError, match="has 300 bytes, allowed: 255"):
        storage.check_writable("--out", str(tmp_path / LONG))


def test_a_look_of_another_process_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    class Named:
        def __init__(self, prefix: str, dir: str) -> None:
            self._path = Path(dir, f"{prefix}x")

        def __enter__(self) -> None:
            self._path.touch()
            seen.append(OwnedFolder(str(tmp_path), "run", "run.folder").strangers())

        def __exit__(self, *error: object) -> None:
            self._path.unlink()

    monkeypatch.setattr("tempfile.TemporaryFile", Named)
    (tmp_path / ".nfs0001").touch()
    storage.check_writable("--out", str(tmp_path))
    (tmp_path / "theirs").touch()
    storage.check_writable("--out", str(tmp_path))
    assert seen == [[], ["theirs"]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="may not be written to"):
        storage.check_writable("run.folder", str(tmp_path / "run"))


COMMANDS = [
    (["generate", "x", "--out"], "--out"),
    (["evaluate", "--out"], "out"),
    (["fetch", "shapes", "--to"], "--to"),
    (["reproduce", "shapes", "--quick", "--folder"], "--folder"),
    (["reproduce", "paper", "--concept", "x", "--folder"], "--folder"),
    (["benchmark", "--out"], "--out"),
    (["shapes", "build-base", "--work"], "--work"),
    (["shapes", "concept", "bars"], "FOLDER"),
    (["shapes", "card", "--pictures"], "--pictures"),
]
FILES = [
    (["data", "look", "{tmp}", "--page"], "--page", ".html"),
    (["report", "{tmp}/a", "{tmp}/b", "--out"], "--out", ".html"),
    (["export", "{tmp}", "--out"], "--out", ".safetensors"),
    (
        ["init", "--base=shapes", "--data=shapes:bars", "--concept=x", "--cluster=here:1", "--out"],
        "--out",
        ".yaml",
    ),
    (["caption", "{tmp}", "--device=cpu", "--out"], "--out", ".jsonl"),
]


@pytest.mark.parametrize("place", [NO_DISK, f"{{tmp}}/{LONG}"], ids=["proc", "long"])
@pytest.mark.parametrize(
    ("command", "option", "end"), [*((*row, "") for row in COMMANDS), *FILES], ids=str
)
def test_every_command_names_its_option(
    command: list[str],
    option: str,
    end: str,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = Path(__file__).parents[2] / "docs/images"
    (tmp_path / "a.png").write_bytes(next(picture.glob("*.png")).read_bytes())
    (tmp_path / "a.txt").write_text("x")
    words = [word.format(tmp=tmp_path) for word in command]
    target = place.format(tmp=tmp_path) + end
    if words[0] == "caption":  # whose model is asked for first
        monkeypatch.setattr("dopsd.driver.caption.run.check_config", lambda *_: None)
        monkeypatch.setattr("dopsd.driver.caption.run.model_identity", lambda *_: "m")
    assert main([*words, target]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dopsd: {option}: {target[:40]}") and "; allowed: " in line
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.txt"]
