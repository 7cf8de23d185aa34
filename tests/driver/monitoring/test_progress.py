"""The display: plain lines in a log, everything a person asks for in the panel."""

import io
from dataclasses import replace

from rich.console import Console

from dopsd.coordinator.admission import Counts
from dopsd.coordinator.messages import RunStatus
from dopsd.driver.monitoring.progress import Progress, Report, clock

STATUS = RunStatus(
    step=3,
    steps=60,
    latest={"loss": 0.125, "student_lag": 1, "teacher_lag": 1, "rollout_idle_fraction": 0.25},
    roles={"rollout": "rollout-0: generate step 4 micro-batch 1 for 2 s", "learner": "training"},
    counts=Counts(trained=6, ready=1, in_flight=1, waiting=112),
)


def test_log_lines_have_step_loss_lag_and_eta():
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=False))
    with progress:
        progress.show("prepare", "12 of 12 images")
        progress.show("train", STATUS)
        progress.show("train", STATUS)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2, "a phase is logged once per interval"
    assert "preparing data: 12 of 12 images" in lines[0]
    assert "step 3/60 loss 0.12500 lag 1 ETA" in lines[1]
    assert "drawing" not in lines[1]


def test_pictures_are_counted_until_all_are_there():
    for done, told in ((3, True), (8, False)):
        out = io.StringIO()
        with Progress(Console(file=out, force_terminal=False, width=120)) as progress:
            progress.show("train", replace(STATUS, pictures=(done, 8)))
        assert out.getvalue().endswith("; drawing: 3 of 8 pictures\n") == told


def test_every_line_of_a_report_is_printed_as_it_is():
    for terminal in (False, True):
        out = io.StringIO()
        with Progress(Console(file=out, force_terminal=terminal)) as progress:
            progress.show("preflight", "8 samples")
            progress.show("preflight", Report(["Preflight: a [bold] claim", "a [v] cat"]))
        for line in ("Preflight: a [bold] claim\n", "a [v] cat\n"):
            assert line in out.getvalue()


def test_panel_shows_roles_and_books():
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=120)
    console.print(Progress(console).panel("train", STATUS))
    text = out.getvalue()
    for part in ("step 3/60", "idle  25%", "generate step 4", "112 waiting", "lag student 1"):
        assert part in text


def test_clock():
    assert [clock(s) for s in (5, 65, 3605)] == ["0:05", "1:05", "1:00:05"]
