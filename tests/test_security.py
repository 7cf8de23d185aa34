"""What strangers' files and secrets must never do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dopsd
from dopsd.config import load_config
from dopsd.credentials import holds_credentials
from dopsd.errors import ConfigError

SECRET = "s3cr3t"
REFUSED = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "os.system",
    "shutil.unpack_archive",
    "tarfile.open",
    "zipfile.ZipFile",
}
"""Each of these can run code out of a file, or write where an archive says."""


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def test_nothing_is_unpickled_or_unpacked() -> None:
    files = sorted(Path(dopsd.__file__).parent.rglob("*.py"))
    assert len(files) > 100
    for file in files:
        for name, call in calls(file):
            options = {each.arg: ast.unparse(each.value) for each in call.keywords}
            assert name not in REFUSED, f"{file}:{call.lineno}: {name}"
            assert not name.endswith((".extract", ".extractall")), f"{file}:{call.lineno}: {name}"
            if name == "torch.load":
                assert options.get("weights_only") == "True", f"{file}:{call.lineno}"
            if name in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False", f"{file}:{call.lineno}"
            assert options.get("shell", "False") == "False", f"{file}:{call.lineno}"


@pytest.mark.parametrize(
    "key", ["data.source", "data.shards", "run.folder", "model.base", "data.prior.prompts"]
)
@pytest.mark.parametrize("url", ["s3://key:{}@bucket/x", "https://me:{}@host/x"])
def test_credentials_in_a_config_are_refused_and_not_repeated(key: str, url: str) -> None:
    overrides = ["data.source=x", f"{key}={url.format(SECRET)}"]
    with pytest.raises(ConfigError, match=f"^{key}: credentials in a URL") as caught:
        load_config(None, overrides)
    assert SECRET not in str(caught.value)


def test_what_is_a_secret_in_a_url() -> None:
    for url in ("s3://a:b@c/d", "s3://a:b/c@d", "http://u:p@h", "HTTPS://u:p/q@h/x"):
        assert holds_credentials(url), url
    for url in (
        "s3://bucket/a:b@c",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/y",
        "http://h:80/x",
        "shapes:bars",
        "me@example",
        "https://host/a@b",
    ):
        assert not holds_credentials(url), url
