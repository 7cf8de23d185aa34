"""How Ray Data runs here: quietly, and with its errors told as their own messages."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from dopsd import errors
from dopsd.errors import DopsdError, WorkerError
from dopsd.files import storage

# Put together here, so that the text of a traceback through this file holds no mark of its own.
_OPEN, _CLOSE = (f"<{slash}dopsd-error>" for slash in ("", "/"))
_MARKED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)

_MOST_TASKS = 2000
"""Tasks of a pass; making each costs the driver about a millisecond."""
Value = TypeVar("Value")


class LazyActorState(Generic[Value]):
    """What an actor makes when it starts; that it could not is told by the first use.

    An actor that fails to start is started again and again, each time with a page of traceback.
    """

    def __init__(self, build: Callable[[], Value]) -> None:
        self._state: Value | None = None
        self._failure: Exception | None = None
        try:
            self._state = build()
        except Exception as error:
            self._failure = error

    def get(self) -> Value:
        """Raises what making it raised."""
        if self._failure is not None:
            raise self._failure
        assert self._state is not None
        return self._state


def quiet_context() -> DataContext:
    """A copy of the current context without progress bars and start messages."""
    # What goes wrong reaches the caller as an exception; Ray Data would log it besides, at length.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def map_items(
    items: list[dict[str, Any]], function: Any, size: int, who: str, **options: Any
) -> Iterator[pa.Table]:
    """Tables that ``function`` makes of tables of ``size`` items, in whatever order.

    ``options``: of ``map_batches``. Raises the DopsdError of a task; ``who`` names any other error.
    """
    if not items:
        return
    failure: DopsdError | None = None
    try:
        with DataContext.current(quiet_context()):
            blocks = min(-(-len(items) // size), _MOST_TASKS)
            data: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=blocks)
            data = data.map_batches(function, batch_size=size, batch_format="pyarrow", **options)
            yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        failure = unwrap_error(error, who)
    if failure is not None:
        # Ray ends actors that nobody refers to. Frames of the error do, in cycles, and would hold
        # CPUs and GPUs until Python happens to look for those.
        gc.collect()
        raise failure


def absolute_path(path: str) -> str:
    """A path that means the same in tasks, whose working folder may be another one."""
    return path if storage.is_remote(path) else os.path.abspath(path)


@contextmanager
def shipping_errors() -> Iterator[None]:
    """Within a task: whatever is raised reaches :func:`unwrap_error` with its kind and message.

    Ray Data hands on an exception of a task as the text of its traceback alone, so the error
    travels inside that text.
    """
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        message = str(error) if isinstance(error, DopsdError) else f"{kind}: {error}"
        text = json.dumps([kind, message]).replace("<", "\\u003c")
        raise RuntimeError(_OPEN + text + _CLOSE) from error


def unwrap_error(error: BaseException, who: str) -> DopsdError:
    """The DopsdError of a task as it was raised there; of anything else a WorkerError.

    ``who`` stands before the messages of the latter.
    """
    if type(error).__module__ == errors.__name__ and isinstance(error, DopsdError):
        return error
    marked = _MARKED.search(str(error))
    if marked is None:
        lines = str(error).strip().splitlines() or [""]
        return WorkerError(f"{who}: {type(error).__name__}: {lines[-1].strip()}")
    kind, message = json.loads(marked[1])
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, DopsdError):
        return known(message)
    return WorkerError(f"{who}: {message}")
