"""``LIB:CONCEPT`` where a command takes a LoRA."""

from __future__ import annotations

import re

from dopsd import shown
from dopsd.data.planning.order import check_concepts
from dopsd.errors import DataError
from dopsd.files import storage
from dopsd.library.folder import CONFIG, LORA, LibraryFolder
from dopsd.terminal import complain


def concept_lora(lora: str) -> str:
    """The path of the adapter that ``[NAME=]LIB:CONCEPT`` stands for, with the name before it; any
    other text, such as a path, as it is. A library is told by its folder, since both names may hold
    colons. One that the next training would renew is told. Raises DataError for a concept that the
    library does not have, or not yet."""
    name, equals, path = lora.partition("=")
    if not equals or "/" in name or ":" in name:  # the "=", if any, is the path's own
        name, equals, path = "", "", lora
    for colon in re.finditer(":(?!//)", path):
        folder, concept = path[: colon.start()], path[colon.end() :]
        if folder and storage.exists(storage.join(folder, CONFIG)):
            return f"{name}{equals}{_adapter(LibraryFolder(folder), concept)}"
    return lora


def _adapter(library: LibraryFolder, concept: str) -> str:
    known = {row["concept"]: row for row in library.catalogue()}
    where = f"--lora {library.path}"
    check_concepts(where, [concept], known)
    row = known[concept]
    if (card := library.card(concept)) is None:
        why = f"it is skipped ({row['skipped']})" if row["skipped"] else "not trained yet"
        raise DataError(f"{where}: {shown.value(concept)}: {why}")
    if card.fingerprint != row["fingerprint"]:
        complain(
            f"{where}: {shown.value(concept)}: trained of other data or by another recipe than "
            "the catalogue's; `dopsd library train` trains it anew"
        )
    return storage.join(library.concept(concept), LORA)
