"""Who writes into a folder: one process at a time, and an older one stops.

Two that write at once would remove each other's work: a job that was submitted again, or
``--resume`` while the run still trains somewhere. Whoever writes claims the folder first, looks at
what is there under the claim, and acts under it.

The claim is a file in the folder that is created atomically and never changed by its owner, with a
file beside it that beats. Whether an owner lives is known by its process where process ids mean
the same ones, and elsewhere by watching it beat: clocks of hosts are never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from dopsd import processes
from dopsd.errors import DataError, LeaseHeld, LeaseLost, StorageError
from dopsd.files import storage
from dopsd.readers import parse_json

LEASE = ".dopsd-lease"
"""The claim's name in its folder; its beat's name goes on with a dot and the owner's token."""
BEAT_SECONDS = {False: 1.0, True: 10.0}
"""Between two beats in a local folder and on S3; as often a holder looks whether it still is."""
EXPIRY_SECONDS = {False: 30.0, True: 60.0}
"""An owner that was watched for as long without a beat is dead."""
CLOCK = "%Y-%m-%d %H:%M:%S%z"
"""How a claim and its beats write times."""
_BEATS_TO_NOTICE = 3
"""Beats after which a holder that has lost its claim writes no more: a new one waits for that."""
_SETTLE_SECONDS = 2.0
"""After creating a claim on S3, where a server without conditional writes lets the last win."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Owner:
    """What a claim says of its process."""

    token: str
    host: str
    place: str
    pid: int
    started: str | None
    """Of the process: a number is given out again. See ``processes``."""
    since: str
    """For people."""

    @classmethod
    def this_process(cls) -> Owner:
        pid = os.getpid()
        token, host = uuid.uuid4().hex, socket.gethostname()
        return cls(token, host, processes.place(), pid, processes.started(pid), _now())

    @property
    def lives(self) -> bool | None:
        """None where nothing but its beats can tell."""
        if not self.place or self.place != processes.place():
            return None
        return processes.started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "a process that is unknown"


@dataclass(frozen=True)
class _Beat:
    """Of an owner's heart."""

    count: int = 0
    at: str | None = None
    """By the owner's clock, as ``CLOCK`` writes it."""


@dataclass(frozen=True)
class Lease:
    """A right to write into ``folder``, until another process takes it."""

    folder: str
    token: str

    @property
    def path(self) -> str:
        return storage.join(self.folder, LEASE)

    @property
    def beat(self) -> str:
        return f"{self.path}.{self.token}"

    def check(self) -> None:
        """Raises LeaseLost when another process has taken the folder, and OSError or StorageError
        when the storage does not say."""
        owner = _read(self.path)
        if owner is None or owner.token != self.token:
            by = f"by another process ({owner})" if owner else "by another process that has ended"
            raise LeaseLost(
                f"{self.folder} was taken over {by}; this one stops and leaves it alone"
            )


@contextlib.contextmanager
def claimed(
    folder: str, key: str, *, take_over: bool = False, tell: Tell = lambda line: None
) -> Iterator[Lease]:
    """``folder``, made where it is missing, for this process alone while the block lasts.

    Raises LeaseHeld, in the name of the option or config key ``key``, when a living process has it
    and ``take_over`` is off. A dead one's claim is taken, which ``tell`` hears; where nothing but
    its beats shows that it is dead they are waited for. Inside the block storage raises LeaseLost
    before anything is written or removed under a folder that was taken over. ConfigError for a
    folder that cannot be written.
    """
    storage.check_writable(key, folder)
    made = _missing(folder)
    me = Owner.this_process()
    lease = Lease(folder, me.token)
    heart = _Heart(lease)
    try:
        replaced = _acquire(lease, me, key, take_over, tell)
        heart.beat()
        heart.start()
        _settle(lease, replaced)
        with heart.guarding():
            yield lease
    finally:
        heart.stop()
        _release(lease)
        for path in made:  # by a command that wrote nothing
            with contextlib.suppress(OSError):
                os.rmdir(path)


def holder(folder: str) -> tuple[Owner, str | None] | None:
    """Who has claimed ``folder``, and when its heart beat last, by its own clock; None when nobody
    has. Raises LeaseHeld for a claim that is none of dopsd's."""
    path = storage.join(folder, LEASE)
    owner = _read(path)
    return None if owner is None else (owner, _last_beat(path, owner).at)


class _Heart(threading.Thread):
    """Beats for a lease, and knows when it was last known to be held."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(daemon=True, name="lease")
        self._lease = lease
        self._seconds = BEAT_SECONDS[storage.is_remote(lease.folder)]
        self._count = 0
        self._held = time.monotonic()
        self._lost: LeaseLost | None = None
        self._over = threading.Event()
        self._inside = _absolute(lease.folder) + "/"

    def run(self) -> None:
        while not self._over.wait(self._seconds) and not self._lost:
            self.beat()

    def beat(self) -> None:
        """Once; a storage that is away for a while is no reason to end."""
        with contextlib.suppress(OSError, StorageError, LeaseLost):
            self._look()
            self._count += 1
            beat = json.dumps({"count": self._count, "at": _now()})
            storage.write_bytes(self._lease.beat, beat.encode())

    def guard(self, path: str) -> None:
        """Raises LeaseLost when ``path`` is of a folder that was taken over. A process that was
        stopped for a while looks again before it writes."""
        if not f"{_absolute(path)}/".startswith(self._inside):
            return
        if self._lost:
            raise LeaseLost(str(self._lost))
        if time.monotonic() - self._held > (_BEATS_TO_NOTICE - 1) * self._seconds:
            self._look()

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Storage asks before it writes anything."""
        storage.guards.append(self.guard)
        try:
            yield
        finally:
            storage.guards.remove(self.guard)

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join(timeout=_BEATS_TO_NOTICE * self._seconds)

    def _look(self) -> None:
        asked = time.monotonic()
        try:
            self._lease.check()
        except LeaseLost as lost:
            self._lost = lost
            raise
        self._held = asked


def _acquire(lease: Lease, me: Owner, key: str, take_over: bool, tell: Tell) -> bool:
    """Returns whether another one's claim was replaced."""
    payload = json.dumps(asdict(me)).encode()
    while not storage.create(lease.path, payload):
        other = _read(lease.path)
        if other is None:  # given back just now
            continue
        if other.token == me.token:  # a request that arrived, whose answer did not
            break
        if take_over:
            why = "taken over (--take-over)"
        elif _lives(lease.path, other, tell):
            beat = _last_beat(lease.path, other).at or "none"
            raise LeaseHeld(
                f"{key}: {lease.folder} is being written by {other} since {other.since}, last "
                f"heart-beat {beat}; allowed: wait until it ends, another folder, or --take-over"
            )
        else:
            why = "which is dead"
        if _read(lease.path) == other:
            storage.write_bytes(lease.path, payload)
            tell(
                f"{lease.folder}: the claim of {other} since {other.since}, {why}, is this "
                "process's now"
            )
            return True
    return False


def _settle(lease: Lease, replaced: bool) -> None:
    """Wait until nobody else writes, and clear what others left. Raises LeaseHeld when another one
    was later with the same."""
    remote = storage.is_remote(lease.folder)
    if replaced:  # its helpers may be alive, and one that was stopped may wake
        time.sleep(_BEATS_TO_NOTICE * BEAT_SECONDS[remote])
    elif remote:
        time.sleep(_SETTLE_SECONDS)
    try:
        lease.check()
    except LeaseLost as lost:
        raise LeaseHeld(str(lost)) from None
    for name in storage.names(lease.folder):
        if name.startswith(f"{LEASE}.") and not name.startswith(os.path.basename(lease.beat)):
            storage.remove(storage.join(lease.folder, name))


def _lives(path: str, owner: Owner, tell: Tell) -> bool:
    if (lives := owner.lives) is not None:
        return lives
    expiry = EXPIRY_SECONDS[storage.is_remote(path)]
    tell(f"{path}: of {owner} since {owner.since}; waiting up to {expiry:g} s for its heart-beat")
    before, until = _last_beat(path, owner), time.monotonic() + expiry
    while time.monotonic() < until:
        time.sleep(min(1.0, expiry / 10))
        if _last_beat(path, owner) != before or _read(path) != owner:
            return _read(path) == owner  # else it has ended, or another one was first
    return False


def _release(lease: Lease) -> None:
    with contextlib.suppress(OSError, StorageError):
        with contextlib.suppress(LeaseHeld, LeaseLost):
            lease.check()
            storage.remove(lease.path)
        storage.remove(lease.beat)


def _read(path: str) -> Owner | None:
    """Whose claim it is; None where there is none. Raises LeaseHeld for a file that is none."""
    try:
        payload = storage.read_bytes(path)
    except FileNotFoundError:
        return None
    if not payload.strip(b"\0"):  # it is being written, or a power cut left no more of it
        return Owner("", "", "", 0, None, "an unknown time")
    try:
        return parse_json(payload, path, Owner, LeaseHeld)
    except LeaseHeld as problem:
        raise LeaseHeld(f"{problem}: not a claim of dopsd; allowed: take it away") from None


def _last_beat(path: str, owner: Owner) -> _Beat:
    """The newest; an empty one where there is none that can be read."""
    try:
        return parse_json(storage.read_bytes(f"{path}.{owner.token}"), path, _Beat)
    except (FileNotFoundError, DataError):
        return _Beat()


def _missing(folder: str) -> list[str]:
    """The folders that have to be made for ``folder``, innermost first."""
    missing: list[str] = []
    path = "" if storage.is_remote(folder) else os.path.abspath(folder)
    while path and not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _absolute(path: str) -> str:
    return path.rstrip("/") if storage.is_remote(path) else os.path.abspath(path)


def _now() -> str:
    return time.strftime(CLOCK)
