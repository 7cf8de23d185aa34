"""Folders that collide are refused by both keys, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dopsd.config import RunConfig
from dopsd.driver.setup.folders import check_folders
from dopsd.errors import ConfigError, DataError
from tests.helpers.tiny import make_config


def make(run: str, **sections: Any) -> RunConfig:
    return make_config("base", **{"run": {"folder": run}, **sections})


@pytest.mark.usefixtures("s3")
def test_folders_that_hold_one_another_are_refused_by_both_keys(tmp_path: Path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "images")
    (tmp_path / "images").mkdir()
    base = str(tmp_path)

    def refused(run: str, shards: str | None, source: str | None) -> str:
        data = {"shards": shards, "source": source}
        with pytest.raises((ConfigError, DataError)) as error:
            check_folders(make(run, data=data))
        return str(error.value).replace(base, "")

    for run in ("images", "images/run", "link", "link/../images", "."):
        line = refused(f"{base}/{run}", None, f"{base}/images")
        assert line.startswith("data.source: /images ") and "run.folder (" in line
    for shards in ("images", "images/shards", "."):
        line = refused(f"{base}/run", f"{base}/{shards}", f"{base}/images")
        assert line.startswith("data.source: /images ") and "data.shards (" in line
    for run in ("s", "s/run"):
        line = refused(f"{base}/{run}", f"{base}/s", f"{base}/images")
        assert line.startswith(f"run.folder: /{run} is or lies in data.shards (/s)")
    assert "data.source: s3://b/x/y lies in" in refused("s3://b/x", None, "s3://b/x/y")
    monkeypatch.setenv("HOME", f"{base}/home")
    for folder in ("", " ", "/", f"{base}/home"):
        assert refused(folder, None, f"{base}/images").startswith("run.folder: ")
    check_folders(make(f"{base}/run", data={"source": f"{base}/images"}))
    check_folders(make(f"{base}/a", data={"shards": f"{base}/b", "source": "s3://b/x"}))
    check_folders(make("s3://b/x", data={"source": "s3://b/xy"}))
