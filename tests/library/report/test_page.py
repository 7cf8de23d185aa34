"""The page of a library: whatever a concept is called, it is text; what failed comes first; a
browser finds, sorts and filters a thousand concepts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dopsd.cli.main import main
from dopsd.errors import ConfigError
from dopsd.library.catalogue.catalogue import Concept
from dopsd.library.catalogue.names import folder_of
from dopsd.library.folder import CONCEPTS, PAGE, PAGES, LibraryFolder
from dopsd.library.report.page import CARDS, write_page
from dopsd.library.report.sheet import thumbnail
from dopsd.library.report.status import DONE, IN_FLIGHT, PARKED, SKIPPED, WAITING
from tests.helpers.browser import open_page
from tests.helpers.tiny import make_config, random_image
from tests.report.test_page import Tags

HOSTILE = [
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&\"'",
    "../../x",
    "CON",
    "🦊" * 40,
    "a" * 1000,
    "javascript:alert(1)",
    "\u202etxt.exe",
    "\ud800 half",
]


@cache
def picture(number: int) -> bytes:
    return thumbnail(
        tuple(Image.fromarray(random_image(64, 64, 3 * number + way)) for way in range(3))
    )


def row(name: str, status: str = DONE, reason: str = "", **values: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "concept": name,
        "status": status,
        "reason": reason,
        "folder": CONCEPTS + folder_of(name),
        "pictures": 12,
        "captions": 12,
        "planned_steps": 240,
        "attempts": 1,
    }
    if status == DONE:
        made |= {"steps": 200, "stopped": "no gain", "seconds": 754.0, "no_sheet": ""}
        made |= {"first_loss": 0.5, "last_loss": 0.2, "metric": "latent", "thumbnail": picture(1)}
        made |= {"base_distance": 0.5, "student_distance": 0.1, "sharpness_ratio": 0.97}
    return made | values


def thousand() -> list[dict[str, Any]]:
    """Rows of a library after a night."""
    pictures = [picture(number) for number in range(8)]
    rows = [
        row(
            f"pets/{number:04}",
            student_distance=0.05 + 0.0005 * number,
            thumbnail=pictures[number % 8],
        )
        for number in range(1000 - len(HOSTILE) - 4)
    ]
    rows += [row(name) for name in HOSTILE]
    why = "its worker died: out of memory, attempt 2"
    rows += [row("anime/aya", PARKED, why, attempts=2), row("pets/lost", PARKED, why, attempts=2)]
    rows += [row("pets/few", SKIPPED, "too few pictures: 1, library.min_images: 3", attempts=0)]
    return [*rows, row("pets/now", IN_FLIGHT, "on worker-3 from step 0", attempts=0)]


@pytest.fixture
def library(tmp_path: Path) -> LibraryFolder:
    folder = LibraryFolder(str(tmp_path / "library"))
    folder.begin(make_config("base"), [Concept("<b>", 4, 4, 120)], {"<b>": "f"})
    return folder


def written(folder: LibraryFolder) -> dict[str, str]:
    root = Path(folder.path)
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.html")}


def test_names_are_text_and_paths_are_ours(library: LibraryFolder) -> None:
    write_page(library, thousand())
    pages = written(library)
    assert sorted(pages) == [PAGE, *(f"{PAGES}{number:04}.html" for number in range(1, 5))]
    for name, text in pages.items():
        tags = Tags(text).tags
        assert [tag for tag, _ in tags].count("script") == 1, "the page's own"
        assert not [a for _, a in tags if any(key.startswith("on") for key in a)]
        assert "\u202e" not in text and "\\u202etxt.exe" in pages[PAGE]
        links = {str(a["href"]) for tag, a in tags if tag == "a"}
        for link in links - {f"../{PAGE}", PAGE}:
            path, _, anchor = link.partition("#")
            target = (Path(library.path) / Path(name).parent / path).resolve()
            inside = target.relative_to(library.path).as_posix()
            assert inside in pages or inside.startswith(CONCEPTS), link
            assert not anchor or f'id="{anchor}"' in pages[inside]
        sources = [str(a["src"]) for tag, a in tags if tag == "img"]
        assert all(source.startswith("data:image/webp;base64,") for source in sources)
        assert len(sources) <= CARDS and len(text) < 4e6


def test_failures_come_first_and_then_the_worst(library: LibraryFolder) -> None:
    rows = [
        row("good"),
        row("bad", student_distance=0.9),
        row("undrawn", no_sheet="no decoder", thumbnail=None, base_distance=None),
        row("waits", WAITING, attempts=0),
        row("lonely", SKIPPED, "too few pictures: 1", attempts=0),
        row("dead", PARKED, "not finite", attempts=3),
    ]
    write_page(library, rows)
    (text,) = written(library).values()
    order = ["dead", "lonely", "undrawn", "bad", "good", "waits"]
    at = [text.index(f'<b class="name">{name}</b>') for name in order]
    assert at == sorted(at)
    assert "no sheet: no decoder" in text and "80% farther" in text and "80% nearer" in text


def test_a_page_takes_the_place_of_the_last_and_of_nothing_else(library: LibraryFolder) -> None:
    write_page(library, thousand())
    stray = Path(library.path, PAGES, "diary.html")
    stray.write_text("dear diary")
    write_page(library, thousand()[:300])
    assert sorted(written(library)) == [
        PAGE,
        *(f"{PAGES}{name}.html" for name in ("0001", "0002", "diary")),
    ]
    stray.unlink()
    write_page(library, [row("one")])
    assert list(written(library)) == [PAGE] and not Path(library.path, PAGES).exists()
    Path(library.path, PAGE).write_text("my own")
    with pytest.raises(ConfigError, match=r"index\.html not as dopsd left it"):
        write_page(library, [row("one")])


def test_the_command_makes_the_page_of_what_lies_there(
    library: LibraryFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["library", "page", library.path]) == 0
    assert capsys.readouterr().out == f"{library.path}/{PAGE}\n"
    assert '<b class="name">&lt;b&gt;</b>' in written(library)[PAGE]
    assert main(["library", "page", str(tmp_path)]) == 1
    assert "holds no library" in capsys.readouterr().err


_PROBE = """
const told = {wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth};
const shown = () => [...list.children].filter((e) => !e.hidden)
  .map((e) => e.querySelector(".name").textContent);
const give = (values) => {
  form.reset();
  for (const [key, value] of Object.entries(values)) {
    form[key].value = value;
    form[key].dispatchEvent(new Event("input", {bubbles: true}));
  }
  return shown();
};
const press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
told.all = shown().length;
told.first = shown().slice(0, 3);
told.search = give({q: "PETS/000 "});
told.reason = give({q: "memory lost"});
told.hostile = give({q: "onerror=alert"}).length;
told.status = give({status: "skipped"});
told.range = give({score: "near", from: "0.895", to: "1"});
told.worst = give({order: "near"}).slice(0, 1);
told.best = give({order: "-near"}).slice(0, 1);
press("Escape");
told.again = shown().length;
press("/");
told.typing = document.activeElement === form.q;
press("Enter"); press("j");
told.second = document.activeElement.querySelector(".name").textContent;
const pre = document.createElement("pre");
pre.id = "told"; pre.textContent = JSON.stringify(told);
document.body.append(pre);
"""


@pytest.mark.parametrize(("width", "height"), [(360, 780), (1280, 800)])
def test_a_browser_finds_sorts_and_filters_a_thousand(
    library: LibraryFolder, width: int, height: int
) -> None:
    write_page(library, thousand())
    index = Path(library.path, PAGE)
    index.write_text(index.read_text().replace("</script></body>", f"{_PROBE}</script></body>"))
    dom, console = open_page(index, f"--window-size={width},{height}")
    assert console == []
    told = json.loads(dom[dom.index('<pre id="told">') + 15 : dom.rindex("</pre>")])
    assert told["wide"] <= 0, f"scrolls sideways at {told['width']} px"
    assert told["all"] == told["again"] == 1000
    assert told["first"] == ["anime/aya", "pets/lost", "pets/few"]
    assert told["search"] == [f"pets/000{number}" for number in range(9, -1, -1)]
    assert told["reason"] == ["pets/lost"] and told["hostile"] == 1
    assert told["status"] == ["pets/few"]
    assert told["range"] == [f"pets/{number:04}" for number in range(5, -1, -1)]
    assert told["worst"] == ["pets/0987"] and told["best"] == ["pets/0000"]
    assert told["typing"] and told["second"] == "pets/lost"
