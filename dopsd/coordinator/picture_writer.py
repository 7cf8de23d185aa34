"""Pictures of own prompts that come while a run trains: into its folder, and to its trackers."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dopsd.config import RunConfig
from dopsd.errors import DopsdError, LeaseLost
from dopsd.files import storage
from dopsd.ray_cluster.failures import error_message
from dopsd.run_folder.preview_files import HISTORY, prompt_path
from dopsd.run_folder.prompt_history import Drawn, drawn_prompts, drawn_samples, prompt_facts
from dopsd.run_folder.tracked_pictures import StoredPicture, TrackedPicture

_END_SECONDS = 30.0
"""What writing the last ones may take at the end of a run."""


class PictureWriter:
    """Writes each picture, and then the history that names it, in a thread of its own.

    ``write`` brings whole files into the run folder, into its record too; ``track`` sends a picture
    to the trackers, ``track_kept`` those that a rewind keeps. What cannot be written is drawn again
    after training.
    """

    def __init__(
        self,
        config: RunConfig,
        size: tuple[int, int],
        write: Callable[[Mapping[str, bytes]], None],
        track: Callable[[TrackedPicture], None],
        track_kept: Callable[[Sequence[StoredPicture]], None],
    ) -> None:
        self.config, self._size = config, size
        self._write, self._track, self._track_kept = write, track, track_kept
        self._waiting: queue.Queue[tuple[int, Drawn, Callable[[], bytes]] | None] = queue.Queue()
        self._writing = threading.Lock()
        """Held for what is written, never while a picture is on its way from its worker's node."""
        self._rewinds = 0
        """What was taken before the last one is not written."""
        self._drawn: set[Drawn] | None = None
        """What the history names; None before it was read."""
        self._samples: dict[str, Any] = {"samples": [], "rows": []}
        """What it says beside that: of an extended run."""
        self._thread: threading.Thread | None = None
        self.notices: list[str] = []

    def rewind(self, step: int) -> set[Drawn]:
        """The run resumes from ``step``: what was drawn of later versions is drawn anew. Returns
        what stays."""
        if not self.config.preview.prompts:
            return set()
        with self._writing:
            self._rewinds += 1
            while not self._waiting.empty():
                self._waiting.get_nowait()
            try:
                if self._drawn is None:
                    self._samples = drawn_samples(self.config, step)
                    self._drawn = drawn_prompts(self.config, self._size)
                kept = {each for each in self._drawn if each[0] <= step}
                if kept != self._drawn:
                    self._drawn = kept
                    self._write({HISTORY: self._history()})
            except (OSError, DopsdError) as error:
                self._note("the history", error)
            kept = set(self._drawn or ())
            self._track_kept([self._stored(each) for each in sorted(kept)])
            return kept

    def _stored(self, drawn: Drawn) -> StoredPicture:
        version, number = drawn
        path = storage.join(self.config.run.folder, prompt_path(*drawn))
        return StoredPicture(version, number, self.config.preview.prompts[number], path)

    def add(self, drawn: Drawn, fetch: Callable[[], bytes]) -> None:
        """Take a picture, which ``fetch`` brings; never waits."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="own-prompts")
            self._thread.start()
        self._waiting.put((self._rewinds, drawn, fetch))

    def end(self) -> None:
        """Write what is left, within a bounded time."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None:
            rewinds, drawn, fetch = entry
            try:
                picture = fetch()
                with self._writing:
                    if rewinds == self._rewinds:
                        self._keep(drawn, picture)
            except LeaseLost:  # the folder is another driver's, who hears of it elsewhere
                return
            except Exception as error:  # of Ray's, too; nothing of it may cost the run
                self._note(prompt_path(*drawn), error)

    def _keep(self, drawn: Drawn, picture: bytes) -> None:
        version, number = drawn
        self._write({prompt_path(*drawn): picture})
        self._drawn = {*(self._drawn or ()), drawn}
        self._write({HISTORY: self._history()})
        prompt = self.config.preview.prompts[number]
        self._track(TrackedPicture(version, number, prompt, picture))

    def _history(self) -> bytes:
        facts = prompt_facts(self.config, self._size, self._drawn or ())
        record = {**self._samples, **facts}
        return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()

    def _note(self, what: str, error: Exception) -> None:
        self.notices.append(
            f"preview.prompts: {what} is not written while training: {error_message(error)}"
        )
