"""Tensor files of a checkpoint, written by tasks on one node: nothing but records comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dopsd.checkpoint.parts import FileRecord, check_parts, write_parts
from dopsd.config import RunConfig
from dopsd.errors import DeadlineError
from dopsd.files import storage
from dopsd.ray_cluster.failures import unwrap_error
from dopsd.ray_cluster.lost_nodes import node_of, on_lost_nodes


class NodePartWriter:
    """Writes the tensors of rank 0, the actor ``learner``, of a run of ``config``.

    What every node reaches by the same name is written on the learner's node: ``s3://``, and the
    folder of whole models, into which all learners write. Any other path is one of this node, and
    this one writes too while the learner's is taken away: Ray begins no task on such a node. A
    task takes all that it writes when it begins: it goes on when the process that put it into the
    store has ended. ``alive`` is told of each file, and raises when nobody wants the checkpoint any
    more.
    """

    def __init__(self, config: RunConfig, learner: Any, alive: Callable[[], None]) -> None:
        shared = storage.is_remote(config.run.folder) or config.adapters == "full"
        self._learner = learner if shared else None
        self._alive = alive
        self._limit = config.timeouts.startup + storage.OPERATION_S
        """Seconds that a task may take to begin, and a file after it."""

    @property
    def node(self) -> str:
        """Id of the node that writes."""
        node = node_of(self._learner)
        return self._own if node is None or on_lost_nodes([node]) else node

    @property
    def _own(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def write(self, folder: str, refs: Mapping[str, Any]) -> Iterator[tuple[str, FileRecord]]:
        """As PartWriter's. Raises DeadlineError when a file takes longer than the storage may, and
        WorkerError when node or process of the task are lost."""
        names = list(refs)
        records = self._run(write_parts, names, folder, names, *refs.values())
        yield from zip(names, records, strict=True)

    def check(self, folder: str, records: Mapping[str, FileRecord]) -> None:
        """As PartWriter's; raises as ``write`` does."""
        for _ in self._run(check_parts, list(records), folder, dict(records)):
            pass

    def _run(self, work: Callable[..., Any], names: list[str], *arguments: Any) -> Iterator[Any]:
        """What ``work`` yields of each of ``names``."""
        if not names:
            return
        begun = False
        for node in dict.fromkeys([self.node, self._own]):
            try:
                for each in self._run_on(node, work, names, *arguments):
                    begun = True
                    yield each
                return
            except TaskUnschedulableError as error:
                # The node is to go, which was not known a moment ago: this one takes its place.
                if begun or node == self._own:
                    raise unwrap_error(error, f"{work.__name__} on node {node[:12]}") from None

    def _run_on(
        self, node: str, work: Callable[..., Any], names: list[str], *arguments: Any
    ) -> Iterator[Any]:
        """The same on ``node``. Raises TaskUnschedulableError where Ray begins nothing there."""
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        task: Any = ray.remote(work)
        # No CPU is taken from a role for what waits for a storage. A process that died is replaced
        # by Ray: what it wrote is written again, under the same names.
        results = task.options(
            num_cpus=0, num_returns="streaming", scheduling_strategy=here, max_retries=1
        ).remote(*arguments)
        where = f"{work.__name__} on node {node[:12]}"
        done = False
        try:
            for name in names:
                self._alive()
                ready, _ = ray.wait([results], timeout=self._limit)
                if not ready:
                    raise DeadlineError(
                        f"{storage.join(arguments[0], name)}: {where} timed out after "
                        f"{self._limit:g} s"
                    )
                yield ray.get(next(results))
            done = True
        except TaskUnschedulableError:
            raise
        except RayError as error:
            raise unwrap_error(error, where) from None
        finally:
            if not done:
                ray.cancel(results, force=True)
