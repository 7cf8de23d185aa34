"""Ray as the pools of a library see it, played: calls end when a test says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Ref:
    """Of a call, which has ended once it has a value or an error."""

    def __init__(self, method: str) -> None:
        self.method, self.value = method, None

    @property
    def ended(self) -> bool:
        return self.value is not None


class Handle:
    """An actor that notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[Ref] = []
        self.killed = False

    def __getattr__(self, method: str) -> Any:
        def call(*values: object) -> Ref:
            self.calls.append(Ref(method))
            return self.calls[-1]

        def options(num_returns: int = 1, **_: object) -> SimpleNamespace:
            def twice(*values: object) -> tuple[Ref, Ref]:
                return call(), call()

            return SimpleNamespace(remote=twice if num_returns == 2 else call)

        return SimpleNamespace(remote=call, options=options)

    def last(self, method: str) -> Ref:
        return next(ref for ref in reversed(self.calls) if ref.method == method)


class Cluster:
    """What a pool sees of Ray."""

    def __init__(self) -> None:
        self.actors: list[Handle] = []
        self.leaving: set[str] = set()
        self.gone: set[str] = set()

    def launch(self, *arguments: object) -> Handle:
        self.actors.append(Handle())
        return self.actors[-1]

    def remote(self, worker: type | None = None, **options: object) -> Any:
        made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.launch))
        return made if worker else lambda worker: made

    def put(self, value: object) -> object:
        return value

    def wait(self, refs: list[Ref], **options: object) -> tuple[list[Ref], None]:
        return [ref for ref in refs if ref.ended], None

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def kill(self, handle: Handle) -> None:
        handle.killed = True

    def lost(self, nodes: list[str | None]) -> int:
        return sum(node in self.leaving | self.gone for node in nodes)

    def look(self) -> set[str]:
        return self.leaving
