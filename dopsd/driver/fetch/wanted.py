"""What a run reads of its models: repositories of the hub and folders, and of each which files."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopsd.config import RunConfig
from dopsd.errors import ModelError
from dopsd.models.hub import hub_errors
from dopsd.models.pretrained import INDEX, resolve_base, resolve_vlm
from dopsd.ownership.ownership import FileDigest

_PARTS = ("processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""Of a pipeline; a repository may hold the same weights once more in other forms."""
_VLM = "vlm"
"""The VLM's folder inside a local base."""
_KINDS = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Listed:
    """One file of a model, as the hub or the folder lists it."""

    name: str
    bytes: int
    sha256: str | None
    """None of a folder's, and of small files, which the hub knows by another digest."""

    def is_whole(self, found: FileDigest) -> bool:
        return found.bytes == self.bytes and self.sha256 in (None, found.sha256)


@dataclass(frozen=True)
class Wanted:
    """A repository of the hub, or a local folder, and which of its files are read."""

    key: str
    repository: str
    revision: str | None
    patterns: tuple[str, ...]

    @property
    def is_folder(self) -> bool:
        return os.path.isdir(self.repository)

    def called(self, commit: str | None) -> str:
        """In lines for people."""
        return f"{self.repository}@{commit[:12]}" if commit else self.repository

    def listing(self) -> tuple[str | None, list[Listed]]:
        """(commit, files that are read); a folder has no commit. Raises ModelError when it has
        none of them, and for what the hub refuses."""
        commit, files = self._of_folder() if self.is_folder else self._of_hub()
        listed = [
            file for file in files if any(_matches(file.name, pattern) for pattern in self.patterns)
        ]
        if not listed:
            raise ModelError(f"{self.key}: {self.repository}: holds nothing of a model")
        return commit, listed

    def _of_folder(self) -> tuple[None, list[Listed]]:
        folder = Path(self.repository)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
        return None, [Listed(name, size, None) for name, size in names]

    def _of_hub(self) -> tuple[str, list[Listed]]:
        from huggingface_hub import HfApi, constants

        with hub_errors(self.key, self.repository, self.revision):
            api = HfApi(endpoint=constants.ENDPOINT)
            info = api.model_info(self.repository, revision=self.revision, files_metadata=True)
        return str(info.sha), [
            Listed(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else None)
            for entry in info.siblings or []
        ]

    def other_bytes(self, file: Listed, found: FileDigest) -> ModelError:
        """Of a file that is not what was listed."""
        whose = "those that were listed" if self.is_folder else "the hub's"
        return ModelError(
            f"{self.key}: {self.repository}: {file.name}: {found.bytes} bytes that are not "
            f"{whose}; allowed: the same command, some minutes later"
        )


def _matches(name: str, pattern: str) -> bool:
    """In the folder of the pattern, and not below it."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def wanted_models(
    config: RunConfig,
    located: Callable[[str, str | None], str] = lambda base, revision: base,
    folders: bool = False,
) -> Iterator[Wanted]:
    """The models of a run that lie on the hub, with ``folders`` also those of local folders.

    In the order in which they can be known: which VLM goes with a base says the base's own config,
    which is where ``located`` says for (base, revision).
    """
    model = config.model
    base = resolve_base(model.base)
    of_a_part = tuple(f"{part}/{kind}" for part in _PARTS for kind in _KINDS)
    if not os.path.isdir(base):
        yield Wanted("model.base", base, model.revision, (INDEX, *of_a_part))
    elif folders and _is_given_as_folder(model.base):
        of_a_part += tuple(f"{_VLM}/{kind}" for kind in _KINDS)
        yield Wanted("model.base", base, None, (INDEX, *of_a_part))
    if config.separate_vlm:
        vlm = resolve_vlm(located(base, model.revision), model.vlm, model.revision)
        if not os.path.isdir(vlm) or (folders and _is_given_as_folder(model.vlm)):
            yield Wanted("model.vlm", vlm, model.vlm_revision, _KINDS)
    preflight = config.preflight
    if preflight.mode != "off" and preflight.model and not os.path.isdir(preflight.model):
        yield Wanted("preflight.model", preflight.model, None, _KINDS)


def _is_given_as_folder(model: str | None) -> bool:
    """Not the embedded one, nor one that lies on S3 already."""
    return model not in (None, "shapes") and os.path.isdir(os.path.expanduser(str(model)))
