"""The pages of the documentation, and what the tests read in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "cluster" / "README.md",
    ROOT / "configs" / "deepspeed" / "README.md",
    *DOCS,
]


def name(page: Path) -> str:
    """As a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page: its headings, as GitHub and MkDocs spell them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in kept}


def links(page: Path) -> list[str]:
    """Targets of links and images that lead into the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def commands(page: Path, program: str) -> list[str]:
    """The page's shell lines that begin with ``program``, continued ones joined."""
    shell = [*blocks(page, "bash"), *blocks(page, "")]
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(shell)).replace(" && ", "\n")
    lines = re.findall(rf"^{re.escape(program)}\b.*", text, re.MULTILINE)
    return [line.split(" #")[0].strip() for line in lines]
