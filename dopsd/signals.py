"""What SIGINT, SIGTERM, SIGHUP and SIGUSR1 do, at every phase of every command.

The first three end a command with one line and 128 + their number. Outside of training they do so
at once, by a KeyboardInterrupt in the main thread: the one exception from a handler that passes
through Ray's waits. While training, the first one saves and the next one ends. A command that is
ending is not disturbed any more, but ended the hard way when it takes too long.
"""

from __future__ import annotations

import errno
import os
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from dopsd import processes
from dopsd.errors import InterruptedRun, message_line

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_SECONDS = 30.0
"""What ending may take, of a process that is a command's own."""


@dataclass(frozen=True)
class Training:
    """What a training does about signals; it is called in the main thread, at any place."""

    save: Callable[[], None]
    """At SIGUSR1."""
    end: Callable[[], bool]
    """At the first of the signals that end: save, then end. Returns whether there is anything to
    save; else the command ends at once."""


@dataclass
class _State:
    number: int | None = None
    """The first signal that asked for the end."""
    ending: bool = False
    training: Training | None = None
    own_process: bool = False
    over: bool = False
    """The command of an own process has ended; what is left is the interpreter's."""
    installed: bool = False


_state = _State()


@contextmanager
def interruptible(way_on: str | Callable[[], str]) -> Iterator[None]:
    """A command, or a part of one: whichever signal ends it comes out as InterruptedRun, with
    ``way_on``: what is saved and how to go on.

    With the handlers of ``handled``. Outside of the main thread nothing is done.
    """
    with handled():
        try:
            yield
        except KeyboardInterrupt:
            number = _state.number or signal.SIGINT
            way = way_on if isinstance(way_on, str) else _said(way_on)
            name = signal.Signals(number).name
            raise InterruptedRun(f"interrupted by {name}; {way}", number) from None


@contextmanager
def training(save: Callable[[], None], end: Callable[[], bool]) -> Iterator[None]:
    """While the block lasts signals are a training's; see :class:`Training`."""
    _state.training = Training(save, end)
    try:
        yield
    finally:
        _state.training = None


def asked_to_end() -> str | None:
    """Name of the first signal that asked the command for its end."""
    return None if _state.number is None else signal.Signals(_state.number).name


def end_if_asked() -> None:
    """Where a training has saved, or will not: end the command if a signal asked for that."""
    if _state.number is not None:
        _interrupt()


def _heard(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGUSR1:
        if _state.training:
            _state.training.save()
        return
    if number == signal.SIGHUP:
        _leave_lost_terminal()
    if _state.over:
        _end_now()
    if _state.ending and _state.own_process:
        return
    first, _state.number = _state.number is None, _state.number or number
    if not (first and _state.training and _state.training.end()):
        _interrupt()


def _interrupt() -> None:
    if _state.own_process and not _state.ending:
        watch = threading.Timer(END_SECONDS, _end_now)
        watch.daemon = True
        watch.start()
    _state.ending = True
    raise KeyboardInterrupt


@contextmanager
def handled(own_process: bool = False) -> Iterator[None]:
    """Our handlers while the block lasts, and then those of before; inside of another such block
    its own serve. ``own_process``: this one is there for a command alone, and is ended when that
    takes too long to end."""
    if _state.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    # What was started to ignore a signal (nohup, a shell's background) goes on ignoring it.
    before: dict[int, Any] = {
        number: handler
        for number in (*ENDS, signal.SIGUSR1)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    vars(_state).update(vars(_State(own_process=own_process, installed=True)))
    for number in before:
        signal.signal(number, _heard)
    try:
        yield
    finally:
        _state.over = own_process
        if not own_process:
            for number, handler in before.items():
                signal.signal(number, handler)
            vars(_state).update(vars(_State()))


def _said(way_on: Callable[[], str]) -> str:
    try:
        return way_on()
    except Exception as error:  # the storage that it asks may be why somebody had enough
        return f"what is saved cannot be told: {message_line(error)}"


def _leave_lost_terminal() -> None:
    """Write to a terminal that has hung up no more: saving must not fail of it."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except (termios.error, OSError) as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _end_now() -> None:
    number = _state.number or signal.SIGINT
    line = f"dopsd: interrupted by {signal.Signals(number).name}; ended the hard way\n"
    with suppress(OSError):
        os.write(2, line.encode())
    processes.kill(processes.descendants())
    os._exit(128 + number)
