"""Claims of folders: processes that live, are killed, are stopped, and come from other hosts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dopsd import processes
from dopsd.cli.main import main
from dopsd.errors import LeaseHeld, LeaseLost, StorageError
from dopsd.files import storage
from dopsd.ownership import lease as leases
from dopsd.ownership.lease import LEASE, claimed
from dopsd.ownership.lease import holder as holder_of
from dopsd.ownership.scratch import OWNER_FILE, is_scratch

HOLDER = """
import sys, time
from dopsd.ownership import lease
from dopsd.files import storage
from dopsd.errors import DopsdError
lease.BEAT_SECONDS = {False: 0.05, True: 0.05}
folder, write = sys.argv[1:]
with lease.claimed(folder, "run.folder", tell=print):
    print("claimed", flush=True)
    sys.stdin.readline()
    try:
        storage.write_bytes(f"{folder}/{write}", write.encode())
        print("written", flush=True)
    except DopsdError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Beats and waits of a test's length."""
    monkeypatch.setattr(leases, "BEAT_SECONDS", {False: 0.05, True: 0.05})
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", {False: 1.0, True: 1.0})
    monkeypatch.setattr(leases, "_SETTLE_SECONDS", 0.1)


@pytest.fixture
def holder(tmp_path):
    """Starts processes that claim a folder, and write into it when they are told to."""
    started = []

    def start(folder: str = str(tmp_path / "run"), write: str = "first") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, folder, write],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "claimed\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def finish(process: subprocess.Popen[str]) -> str:
    """What a holder says of its write."""
    return process.communicate("go\n", timeout=60)[0].strip()


def rewritten(folder: Path, **values: object) -> None:
    """The claim of ``folder`` as another owner would have written it."""
    path = folder / LEASE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_claim_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "deep" / "run"
    with claimed(str(folder), "run.folder"):
        assert (folder / LEASE).exists()
    assert list(tmp_path.iterdir()) == [], "nor the folders that it made, of a refused command"
    with claimed(str(folder), "run.folder"):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_living_owner_is_named_and_not_disturbed(tmp_path, holder):
    process = holder()
    began = time.monotonic()
    with pytest.raises(LeaseHeld) as refused, claimed(str(tmp_path / "run"), "run.folder"):
        pass
    assert time.monotonic() - began < 1.0
    line = str(refused.value)
    assert line.startswith(f"run.folder: {tmp_path}/run is being written by process {process.pid} ")
    for part in (os.uname().nodename, "since 20", "last heart-beat 20", "or --take-over"):
        assert part in line
    assert finish(process) == "written"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["first"]


def test_one_process_claims_a_folder_once(tmp_path):
    with claimed(str(tmp_path), "--out"), pytest.raises(LeaseHeld), claimed(str(tmp_path), "--out"):
        pass


def test_a_killed_owner_is_replaced_with_a_notice(tmp_path, holder):
    process = holder()
    process.kill()
    while processes.started(process.pid):  # nobody waits for it: a zombie is dead
        time.sleep(0.01)
    told: list[str] = []
    with claimed(str(tmp_path / "run"), "run.folder", tell=told.append):
        names = [path.name for path in (tmp_path / "run").iterdir()]
        assert sorted(names)[0] == LEASE and len(names) <= 2, "its beat was cleared"
    assert len(told) == 1 and "which is dead, is this process's now" in told[0]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_with_the_number_of_the_dead_owner_is_another(tmp_path, holder):
    process = holder()
    rewritten(tmp_path / "run", started="1")
    with claimed(str(tmp_path / "run"), "run.folder"):
        assert "LeaseLost" in finish(process)


def test_who_was_stopped_notices_before_it_writes(tmp_path, holder):
    """Even when the one that took over has finished, and its claim is gone."""
    folder = tmp_path / "run"
    process = holder()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseHeld), claimed(str(folder), "run.folder"):
        pass
    with claimed(str(folder), "run.folder", take_over=True):
        storage.write_bytes(f"{folder}/second", b"")
    process.send_signal(signal.SIGCONT)
    said = finish(process)
    assert said.startswith("LeaseLost: ") and "was taken over" in said
    assert [path.name for path in folder.iterdir()] == ["second"]


def test_who_is_taken_over_stops_without_being_asked(tmp_path, holder):
    process = holder()
    with claimed(str(tmp_path / "run"), "run.folder", take_over=True):
        assert f"by another process (process {os.getpid()} on " in finish(process)


def test_other_folders_are_not_guarded(tmp_path, monkeypatch):
    with claimed(str(tmp_path / "a"), "run.folder"):
        (tmp_path / "a" / LEASE).unlink()
        time.sleep(0.3)
        storage.write_bytes(str(tmp_path / "ab" / "file"), b"")
        for path in (tmp_path / "a" / "file", tmp_path / "a"):
            with pytest.raises(LeaseLost):
                storage.remove(str(path))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LeaseLost):
            storage.write_bytes("a/file", b"")


@pytest.mark.parametrize("remote", [False, True])
def test_an_owner_on_another_host_lives_while_it_beats(remote, tmp_path, request, monkeypatch):
    """Whatever the clocks say: what counts is whether its beat changes while one looks."""
    folder = f"{request.getfixturevalue('bucket')}/lease" if remote else str(tmp_path)
    path = storage.join(folder, LEASE)
    with claimed(folder, "run.folder"):
        monkeypatch.setattr(processes, "place", lambda: "another host")
        with (
            pytest.raises(LeaseHeld, match="is being written by process"),
            claimed(folder, "run.folder"),
        ):
            pass
        payload = storage.read_bytes(path)
    beat = f"{path}.{json.loads(payload)['token']}"
    storage.write_bytes(path, payload)  # as if it had been killed
    storage.write_bytes(beat, b'{"count": 7, "at": "2999-01-01"}')
    told: list[str] = []
    began = time.monotonic()
    with claimed(folder, "run.folder", tell=told.append):
        assert time.monotonic() - began > 1.0, "it was watched"
        assert not storage.exists(beat)
    assert (
        "waiting up to 1 s for its heart-beat" in told[0]
        and "dead, is this process's now" in told[1]
    )
    assert storage.names(folder) == set()


def test_an_owner_that_is_waited_for_may_give_its_claim_back(tmp_path, monkeypatch):
    with claimed(str(tmp_path), "run.folder"):
        payload = (tmp_path / LEASE).read_bytes()
    (tmp_path / LEASE).write_bytes(payload)
    monkeypatch.setattr(processes, "place", lambda: "another host")
    threading.Timer(0.3, (tmp_path / LEASE).unlink).start()
    with claimed(str(tmp_path), "run.folder"):
        assert (tmp_path / LEASE).read_bytes() != payload


@pytest.mark.parametrize("left", [b"", b"\0" * 300])
def test_what_a_power_cut_leaves_of_a_claim_is_replaced(left, tmp_path):
    (tmp_path / LEASE).write_bytes(left)
    with claimed(str(tmp_path), "run.folder"):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()


def test_a_strangers_file_is_not_replaced(tmp_path):
    (tmp_path / LEASE).write_text("mine")
    with (
        pytest.raises(LeaseHeld, match=r"not a claim of dopsd; allowed: take it away"),
        claimed(str(tmp_path), "run.folder", take_over=True),
    ):
        pass
    assert (tmp_path / LEASE).read_text() == "mine"


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_of_many_at_once_one_gets_the_folder(remote, dead, tmp_path, request, monkeypatch):
    """A new folder, and one whose owner is dead."""
    folder = f"{request.getfixturevalue('bucket')}/many-{dead}" if remote else str(tmp_path)
    if dead:
        owner = leases.Owner("gone", "here", processes.place(), 2**22 + 1, "1", "yesterday")
        storage.write_bytes(storage.join(folder, LEASE), json.dumps(vars(owner)).encode())
    start, results = threading.Barrier(6), []

    def attempt() -> None:
        start.wait()
        try:
            with claimed(folder, "run.folder") as lease:
                time.sleep(2.0)
                lease.check()
                results.append("held")
        except LeaseHeld:
            results.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", *["refused"] * 5]
    assert storage.names(folder) == set()


def test_an_s3_without_conditional_writes_gives_the_folder_to_one(bucket, monkeypatch):
    """It lets the last one win, and the others look again."""
    fs, _ = storage.filesystem(bucket)
    plain = type(fs).pipe_file
    monkeypatch.setattr(
        type(fs), "pipe_file", lambda self, path, data, mode="", **kw: plain(self, path, data, **kw)
    )
    results: list[str] = []

    def attempt() -> None:
        try:
            with claimed(f"{bucket}/plain", "run.folder"):
                time.sleep(1.0)
                results.append("held")
        except LeaseHeld:
            results.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused", "refused"]


def test_a_storage_that_is_away_for_a_while_ends_nobody(tmp_path, monkeypatch):
    asked = threading.Event()

    def away(lease: leases.Lease) -> None:
        asked.set()
        raise StorageError("away")

    with claimed(str(tmp_path), "run.folder"):
        with monkeypatch.context() as patch:
            patch.setattr(leases.Lease, "check", away)
            assert asked.wait(10)
        time.sleep(0.2)
        storage.write_bytes(str(tmp_path / "file"), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("run.folder", ["train", "shapes", "run.folder=HELD", "run.overwrite=false"]),
        ("run.folder", ["preflight", "shapes", "run.folder=HELD"]),
        ("data.shards", ["prepare", "shapes", "data.shards=HELD", "run.folder=NEW"]),
        ("--out", ["evaluate", "--out", "HELD"]),
        ("--out", ["generate", "a red square", "--out", "HELD"]),
        ("FOLDER", ["shapes", "concept", "bars", "HELD"]),
        ("--work", ["shapes", "build-base", "--work", "HELD"]),
        ("--folder", ["reproduce", "shapes", "--quick", "--folder", "HELD"]),
    ],
)
def test_every_command_that_writes_claims_first(key, words, tmp_path, holder, capsys):
    """The second of two drivers with one new folder, before it starts anything."""
    process, held = holder(), tmp_path / "run"
    names = {"HELD": str(held), "NEW": str(tmp_path / "new")}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"dopsd: {key}: {held} is being written by process {process.pid} on ")
    assert said.count("\n") == 1 and "--take-over" in said
    assert finish(process) == "written" and os.listdir(held) == ["first"]


def test_a_run_that_finished_meanwhile_is_seen_under_the_claim(tmp_path, holder, capsys):
    """The owner wrote its run and died: its claim is replaced, its run is not."""
    process, folder = holder(write="config.yaml"), tmp_path / "run"
    (folder / "config.yaml").write_text("run: {}")
    process.kill()
    while processes.started(process.pid):
        time.sleep(0.01)
    assert main(["train", "shapes", f"run.folder={folder}", "run.overwrite=false"]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert os.listdir(folder) == ["config.yaml"]


DAMAGE = [b"[]", b"5", b"null", b'"x"', b"[" * 100_000, b"{", b"\xff", b'{"at": 5}', b'{"at": []}']


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
def test_a_claim_or_a_beat_that_is_damaged_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEASE).write_bytes(content)
    with pytest.raises(LeaseHeld, match=r"not a claim of dopsd; allowed: take it away$"):
        holder_of(str(tmp_path))
    owner = {"token": "t", "host": "h", "place": "p", "pid": 3, "started": "1", "since": "today"}
    (tmp_path / LEASE).write_text(json.dumps(owner))
    (tmp_path / f"{LEASE}.t").write_bytes(content)
    found = holder_of(str(tmp_path))
    assert found is not None and (found[0].pid, found[1]) == (3, None)
    assert not is_scratch(str(tmp_path))
    (tmp_path / OWNER_FILE).write_bytes(content)
    assert not is_scratch(str(tmp_path))
