"""`dopsd push`: a run's LoRA with its model card, as a repository of the hub."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dopsd import shown
from dopsd.driver.export.card import SHEET, WEIGHTS, Licence, model_card, public_base
from dopsd.driver.export.formats import DTYPES, safetensors_payload, trained_lora
from dopsd.driver.summary import Summary
from dopsd.errors import ConfigError
from dopsd.files import storage
from dopsd.models import FAMILIES
from dopsd.models.hub import hub_errors, is_hub_id
from dopsd.models.lora.factors import TITLES
from dopsd.models.lora.formats import spelled
from dopsd.run_folder.files import PREVIEW_SHEET, RunFolder

README = "README.md"


def push(run: str, repository: str, dtype: str, public: bool, pictures: bool) -> str:
    """Upload a finished run's LoRA; returns the repository's address.

    Raises ConfigError for what is no finished run of a LoRA, for a name that is none of a
    repository's, for a repository that holds something else, and for one that everybody can read
    unless ``public``; ModelError for what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = repository_files(run, repository, dtype, pictures)
    with hub_errors("REPO", repository, may="write"):
        api = HfApi()
        before: set[str] = set()
        if api.repo_exists(repository):
            known = api.model_info(repository)
            before = {file.rfilename for file in known.siblings or []} - {".gitattributes"}
            if before and "dopsd" not in (known.tags or []):
                raise ConfigError(
                    f"REPO: {repository} holds {min(before)}, which dopsd did not push; allowed: "
                    "another repository"
                )
            if not known.private and not public:
                raise ConfigError(
                    f"REPO: {repository} is there, and everybody can read it; allowed: --public, "
                    "or another repository"
                )
        gone = [CommitOperationDelete(SHEET)] if SHEET in before - files.keys() else []
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.create_commit(
            repository,
            [*(CommitOperationAdd(name, payload) for name, payload in files.items()), *gone],
            commit_message="LoRA by dopsd",
        )
    return str(address)


def write_instead(run: str, repository: str, dtype: str, pictures: bool, folder: str) -> list[str]:
    """`--dry-run`: the repository's files in a folder. Raises as :func:`push`, and ConfigError for
    a folder that holds anything."""
    storage.check_writable("--dry-run", folder)
    if found := sorted(storage.names(folder)):
        raise ConfigError(f"--dry-run: {folder} holds {found[0]}, allowed: an empty folder")
    files = repository_files(run, repository, dtype, pictures)
    paths = []
    for name, payload in files.items():
        paths.append(storage.join(folder, name))
        storage.write_bytes(paths[-1], payload)
    return paths


def repository_files(run: str, repository: str, dtype: str, pictures: bool) -> Mapping[str, bytes]:
    """{name: bytes} of the repository of a finished run's LoRA."""
    _check_name(repository)
    folder = RunFolder(run.rstrip("/"))
    if not folder.exists or not folder.is_finished:
        raise ConfigError(f"{run}: holds no finished run; allowed: the folder of one")
    lora = trained_lora(folder.path)
    if lora.kind not in FAMILIES[lora.family].diffusers_kinds:
        raise ConfigError(
            f"{folder.path}: a {TITLES[lora.kind]}, which load_lora_weights of {lora.family} does "
            "not read, allowed: dopsd export --format peft, and an upload of that folder"
        )
    config, summary = folder.config(), Summary.read(folder.path)
    metadata = {key: shown.line(value, 20_000) for key, value in lora.metadata.items()}
    metadata["dopsd.base"] = public_base(config.model.base)
    state = spelled(lora.state, "diffusers", FAMILIES[lora.family])
    type_: torch.dtype = DTYPES[dtype]
    with_sheet = pictures and folder.has(PREVIEW_SHEET)
    licence = base_licence(config.model.base)
    card = model_card(repository, config, metadata, summary, licence, with_sheet)
    files = {README: card.encode(), WEIGHTS: safetensors_payload(state, type_, dtype, metadata)}
    if with_sheet:
        files[SHEET] = folder.read(PREVIEW_SHEET)
    return files


def base_licence(base: str) -> Licence:
    """What the hub says of a base's licence; nothing of a local base, or where no hub answers: the
    card then refers to the base's page."""
    if not is_hub_id(base):
        return Licence()
    from huggingface_hub import HfApi

    try:
        said = HfApi().model_info(base, timeout=10).card_data
    except Exception:  # a card is not worth less for it, and the library raises many kinds
        return Licence()
    values = said.to_dict() if said else {}
    name, link = (values.get(f"license_{part}") for part in ("name", "link"))
    return Licence(str(values.get("license") or ""), name, link)


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise ConfigError(
            f"REPO: {shown.value(repository)}, allowed: OWNER/NAME of letters, digits, '-', '_', "
            "'.'"
        ) from None
