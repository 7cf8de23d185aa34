"""Signals outside of a training: whichever ends a command, it ends with one line."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from dopsd import processes, signals
from dopsd.cli.main import main
from dopsd.errors import InterruptedRun
from dopsd.signals import ENDS, interruptible, training


def code(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def as_in_a_terminal() -> None:
    """What a shell starts in its background ignores SIGINT, and so would the tests' processes."""
    for number in ENDS:
        signal.signal(number, signal.SIG_DFL)


def ended(script: str, number: int) -> subprocess.CompletedProcess[str]:
    """``script`` until it has printed a line; then it gets the signal."""
    process = subprocess.Popen(
        code(script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    first = process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(script, process.returncode, first + out, err)


SLEEPS = """
import sys, time
from dopsd import __main__ as entry
from dopsd.cli import main as command_line

def wait():
    print("waiting", flush=True)
    # in pieces: a signal that comes just before a sleep does not end it
    for _ in range(600):
        time.sleep(0.1)

@command_line.app.command("sleep")
def sleep():
    {body}

sys.argv = ["dopsd", "sleep"]
sys.exit(entry.main())
"""


@pytest.mark.parametrize("number", ENDS)
def test_every_command_ends_with_one_line(number):
    result = ended(SLEEPS.format(body="wait()"), number)
    name = signal.Signals(number).name
    assert result.returncode == 128 + number
    assert result.stderr == f"dopsd: interrupted by {name}; the same command begins again\n"
    assert result.stdout == "waiting\n"


@pytest.mark.parametrize("number", ENDS)
def test_the_start_of_the_command_line_as_well(number):
    """The signal comes while modules are imported."""
    script = "import sys; from dopsd import __main__ as entry\n" + (
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer':\n"
        "            print('importing', flush=True); import time\n"
        "            for _ in range(600): time.sleep(0.1)\n"
        "sys.meta_path.insert(0, Finder()); sys.exit(entry.main())"
    )
    result = ended(script, number)
    assert result.returncode == 128 + number
    assert len(result.stderr.splitlines()) == 1 and signal.Signals(number).name in result.stderr


def test_no_process_of_a_command_is_left():
    body = "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True); "
    body += "print(p.pid, flush=True); wait()"
    process = subprocess.Popen(
        code(SLEEPS.format(body=body)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    until = time.monotonic() + 10
    while processes.started(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not processes.started(child)


def test_a_command_that_does_not_end_is_ended():
    """Whatever it waits for while it ends, and however often it gets signals meanwhile."""
    body = "from dopsd import signals; signals.END_SECONDS = 0.5\n"
    body += "    try: wait()\n    finally: time.sleep(60)"
    began = time.monotonic()
    result = ended(SLEEPS.format(body=body), signal.SIGTERM)
    assert result.returncode == 143 and time.monotonic() - began < 30
    assert result.stderr == "dopsd: interrupted by SIGTERM; ended the hard way\n"


def test_more_signals_do_not_disturb_the_end():
    body = (
        "import os, signal\n"
        "    try: wait()\n"
        "    finally:\n"
        "        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): os.kill(os.getpid(), n)\n"
        "        print('cleaned', flush=True)"
    )
    result = ended(SLEEPS.format(body=body), signal.SIGINT)
    assert (result.returncode, result.stdout) == (130, "waiting\ncleaned\n")
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_what_was_ignored_stays_ignored():
    """As under nohup."""
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from dopsd.signals import handled\n"
        "with handled(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('alive')"
    )
    assert subprocess.run(code(script), capture_output=True, text=True).stdout == "alive\n"


def test_a_process_that_lives_on_has_its_own_handlers_again():
    before = [signal.getsignal(number) for number in ENDS]
    with (
        pytest.raises(InterruptedRun, match="interrupted by SIGTERM; x") as caught,
        interruptible("outer"),
        interruptible(lambda: "x"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.exit_code == 143
    assert [signal.getsignal(number) for number in ENDS] == before
    with interruptible("again"):
        signals.end_if_asked()  # the one before is forgotten
    assert main(["config", "--list"]) == 0


def test_other_threads_leave_handlers_alone():
    found = []

    def run() -> None:
        with interruptible("x"):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_what_is_saved_may_not_be_known():
    def unknown() -> str:
        raise OSError("no such disk")

    with (
        pytest.raises(InterruptedRun, match="what is saved cannot be told: no such disk"),
        interruptible(unknown),
    ):
        raise KeyboardInterrupt


def test_sigusr1_is_for_trainings_alone():
    asked = []
    with interruptible("x"):
        os.kill(os.getpid(), signal.SIGUSR1)
        with training(save=lambda: asked.append(1), end=lambda: False):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert asked == [1]


def test_a_terminal_that_hung_up_is_written_to_no_more():
    """A training saves although nobody can read what it says of that."""
    script = (
        "import os, signal, sys, time\n"
        "from dopsd.signals import handled, training\n"
        "heard = []\n"
        "with handled(), training(save=lambda: None, end=lambda: heard.append(1) or True):\n"
        "    print('ready', flush=True)\n"
        "    while not heard:\n"
        "        time.sleep(0.01)\n"
        "    print('still here', flush=True)\n"
        "os.write(int(sys.argv[1]), b'saved')"
    )
    read, write = os.pipe()
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*code(script), str(write)],
        stdout=terminal,
        stderr=terminal,
        pass_fds=[write],
        start_new_session=True,
    )
    os.close(terminal)
    os.close(write)
    told = b""
    while not told.endswith(b"\n"):  # before, the writer is not done with the terminal
        told += os.read(master, 100)
    assert told.strip() == b"ready"
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert os.read(read, 100) == b"saved" and process.wait(60) == 0
