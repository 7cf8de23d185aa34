"""The run page from records alone: sections, escaping, runs that are not finished."""

from __future__ import annotations

import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dopsd.cli.main import main
from dopsd.config import dump_config, load_config
from dopsd.credentials import redact
from dopsd.data.manifest import Manifest, PrepareSettings, Quarantined, save_manifest
from dopsd.errors import DataError
from dopsd.report.page import SECTIONS, render, write_report
from dopsd.report.run_files import read_run_files
from dopsd.run_folder.preview_files import HISTORY, prompt_path, strip_path, target_path
from tests.helpers.browser import ask_page, open_page

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&\"'"
STEPS = 6
PROMPT_PICTURES = [{"version": version, "prompt": 0} for version in (0, 3, 6)]
WIDTHS = (360, 1280)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished run whose every text is hostile."""
    run = tmp_path / "run"
    config = load_config(
        "configs/shapes.yaml",
        [f"run.folder={run}", f"run.name={json.dumps(HOSTILE)}", "learner.steps=6"],
    )
    files = {"config.yaml": dump_config(config).encode(), f"<i>{0}</i>.txt": b"x"}
    line = {"loss": 0.5, "grad_norm": 1.0, "lr": 1e-4, "samples": 4, "wall_seconds": 1.0}
    line |= {"student_lag": 0, "teacher_lag": 1, "samples_per_second": 4.0}
    line |= {f"{role}_seconds": 0.5 for role in ("encoder", "rollout", "teacher", "learner")}
    line |= {"rollout_idle_fraction": 0.5}
    metrics = [json.dumps({"step": step, **line}) for step in range(STEPS)]
    files["metrics.jsonl"] = "\n".join(metrics).encode()
    span = {"lane": HOSTILE, "task": "train", "step": 1, "start": 1.0, "end": 2.0}
    other = {"lane": "rollout-0", "task": HOSTILE, "step": 1, "start": 1.0, "end": 9.0, "busy": 4}
    files["timeline.jsonl"] = "\n".join(map(json.dumps, [span, other])).encode()
    summary = {"steps": 6, "seconds": 9.0, "seconds_to_first_step": 1.0, "problems": [HOSTILE]}
    summary |= {"first_loss": 0.5, "last_loss": 0.4}
    files["summary.json"] = json.dumps(summary).encode()
    states = [{"sigma": sigma, "difference": 0.1} for sigma in (1.0, 0.5)]
    rows = [{"version": v, "sample": 0, "states": states} for v in (0, 6)]
    history = {"samples": [{"id": HOSTILE, "prompt": HOSTILE}], "rows": rows}
    history |= {"prompts": [{"prompt": HOSTILE}], "pictures": PROMPT_PICTURES}
    files[HISTORY] = json.dumps(history).encode()
    files[target_path(0)] = png(8, 8)
    files |= {strip_path(version, 0): png(24, 16) for version in (0, 6)}
    files |= {prompt_path(drawn["version"], 0): png(128, 64) for drawn in PROMPT_PICTURES}
    files["preview/weights/v000003.student.safetensors"] = b"lora"
    files["lora.safetensors"] = b"lora"
    files["preflight/report.json"] = json.dumps({"verdict": {"sentence": HOSTILE}}).encode()
    files["preflight/contact_sheet.png"] = png(200, 100)
    for name, payload in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(payload)
    manifest = Manifest(
        source=HOSTILE,
        settings=PrepareSettings(),
        seen=3,
        samples=2,
        buckets={"32x32": 2},
        concepts={HOSTILE: 2},
        caption_sets=(),
        references={"0": 2},
        fingerprint="f" * 64,
        row_groups=(),
        quarantined=(Quarantined(where=HOSTILE, sample_id=HOSTILE, reason="not an image"),),
        notes=(HOSTILE,),
    )
    save_manifest(str(run / "shards"), manifest)
    return run


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_every_section_opens_in_a_browser_and_no_text_becomes_markup(folder):
    dom, console = open_page(Path(write_report(str(folder))))
    assert console == []
    for title, _ in SECTIONS:
        assert f"<h2>{title}</h2>" in dom
    title = dom[dom.index("<title>") : dom.index("</title>")]
    assert "· dopsd" in title, "a caption's script did not run"
    tags = Tags(dom).tags
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    assert [attrs.get("id") for tag, attrs in tags if tag == "script"] == ["spans", None]
    hidden = [a for t, a in tags if t == "figure" and "data-version" in a and "hidden" not in a]
    assert [a["data-version"] for a in hidden] == ["6"], "the script shows one panel, the last"
    assert dom.count("<rect") >= 4, "overview by Python, close-up by the script"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways_and_pictures_come_before_curves(width, folder):
    text = Path(write_report(str(folder))).read_text()
    script = """
      const wide = [...page.querySelectorAll("body *")].filter(
        (e) => !e.closest(".scroll, svg") && e.getBoundingClientRect().right > view.innerWidth + 1);
      const box = (id) => page.getElementById(id).getBoundingClientRect().top;
      return {wide: wide.map((e) => e.outerHTML.slice(0, 80)),
        scroll: page.documentElement.scrollWidth - view.innerWidth, width: view.innerWidth,
        tops: ["prompts", "over-training", "preflight", "draw-with-it", "curves"].map(box),
        sheet: page.querySelector("#preflight img").getBoundingClientRect().height};
    """
    found, console = ask_page(text, width, script)
    assert console == [] and found["width"] == width
    assert found["wide"] == [] and found["scroll"] <= 0
    assert found["tops"] == sorted(found["tops"])
    assert found["sheet"] > 50, "preflight's sheet is open"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_picture_is_enlarged_looked_through_by_keys_and_laid_over_the_base(width, folder):
    text = Path(write_report(str(folder))).read_text()
    script = """
      const viewer = page.getElementById("viewer");
      const name = () => page.getElementById("viewer-name").textContent;
      const press = (target, key) =>
        target.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true}));
      const images = page.querySelectorAll("#prompts .row img");
      const seen = [viewer.open];
      press(images[1], "Enter");
      seen.push(viewer.open, name());
      press(viewer, "ArrowRight"); seen.push(name());
      press(viewer, "ArrowRight"); seen.push(name());
      const slider = viewer.querySelector("input");
      slider.value = 30; slider.dispatchEvent(new view.Event("input"));
      seen.push(view.getComputedStyle(viewer.querySelector(".after")).clipPath);
      press(slider, "ArrowLeft"); seen.push(name());
      press(viewer, "ArrowLeft"); press(viewer, "ArrowLeft"); seen.push(name());
      seen.push(slider.parentElement.hidden);
      const box = viewer.getBoundingClientRect();
      seen.push(box.left >= 0 && box.right <= view.innerWidth);
      viewer.querySelector("[name=close]").click();
      seen.push(viewer.open);
      return seen;
    """
    found, console = ask_page(text, width, script)
    assert console == []
    last = "after 6 steps (3 of 3)"
    assert found == [
        *(False, True, "after 3 steps (2 of 3)", last, last),
        "inset(0px 0px 0px 30%)",
        *(last, "base (1 of 3)"),
        *(True, True, False),
    ]


def test_the_page_says_how_to_draw_with_each_adapter_that_was_kept(folder):
    page = Path(write_report(str(folder))).read_text()
    section = page.partition("<h2>Draw with it</h2>")[2].partition("<h2>")[0]
    assert f"--lora {folder}/lora.safetensors" in section
    assert "after 3 steps" in section
    assert f"--lora {folder}/preview/weights/v000003.student.safetensors" in section


def test_names_act_neither_as_links_nor_on_the_direction_of_writing(folder):
    for name in ("javascript:alert(1)", "\u202etxt.exe", '"><b>', "a\x1b[31mb"):
        (folder / name).write_bytes(b"x")
    history = json.loads((folder / HISTORY).read_text())
    history["samples"][0]["prompt"] = "\u202eright to left\u2066 </script>"
    (folder / HISTORY).write_text(json.dumps(history))
    page = Path(write_report(str(folder))).read_text()
    assert "\u202e" not in page and "\u2066" not in page and "\x1b" not in page
    assert "\\u202eright to left\\u2066 &lt;/script&gt;" in page and "<b>" not in page
    links = [attrs["href"] for tag, attrs in Tags(page).tags if tag == "a"]
    assert all(link.startswith(("./", "#")) for link in links)
    assert "./javascript%3Aalert%281%29" in links


def test_the_page_needs_no_network(folder):
    for tag, attrs in Tags(Path(write_report(str(folder))).read_text()).tags:
        for name in ("src", "href", "srcset", "action"):
            value = attrs.get(name) or ""
            assert not value.startswith(("http", "//", "file")), (tag, value)
    assert "@import" not in Path(write_report(str(folder))).read_text()


def test_nothing_but_a_config_is_enough(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    text = Path(write_report(str(folder))).read_text()
    assert "not finished" in text and "No step is finished yet." in text
    assert "No task has been recorded." in text and "Nothing was drawn" in text


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"dopsd: {tmp_path}: no config.yaml; allowed: the")
    (tmp_path / "config.yaml").write_text("learner: {lrr: 1}")
    with pytest.raises(DataError, match=r"config.yaml: not a config of this dopsd"):
        read_run_files(str(tmp_path))


def test_a_line_cut_off_at_the_end_is_left_out(folder):
    whole = len(read_run_files(str(folder)).metrics)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('\n{"step": 6, "note": "猫'.encode()[:-1])
    assert len(read_run_files(str(folder)).metrics) == whole


def test_no_credentials_are_in_the_page(folder):
    """A config refuses such URLs; a run that was made before it did may hold them still."""
    url = "s3://key:secret/word@bucket/a"
    config = load_config("configs/shapes.yaml", [f"run.folder={folder}"])
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"base": url}),
            "data": config.data.model_copy(update={"shards": url}),
        }
    )
    summary = json.loads((folder / "summary.json").read_text()) | {"problems": [f"{url} is gone"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = dataclasses.replace(
        read_run_files(str(folder)),
        config=config,
        folder=url,
        manifest=None,
        files=[],
        history=None,
    )
    page = render(run)
    assert page.count("s3://***@bucket") >= 4 and "secret" not in page


def test_report_on_s3(folder, bucket):
    from dopsd.files import storage

    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            storage.write_bytes(f"{bucket}/page/{name}", path.read_bytes())
    written = write_report(f"{bucket}/page")
    assert written == f"{bucket}/page/report.html"
    assert b"<h2>Trajectories</h2>" in storage.read_bytes(written)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("https://u:p/w@host/a b@c", "https://***@host/a b@c"),
        ("https://u:p@w@host/a", "https://***@host/a"),
        ("https://host/model@v1", "https://host/model@v1"),
        ("https://host/a?x=1&access_token=abc", "https://host/a?x=1&access_token=***"),
        ("a photo of me@home", "a photo of me@home"),
    ],
)
def test_credentials_in_urls_are_not_shown(text, shown):
    assert redact(text) == shown
