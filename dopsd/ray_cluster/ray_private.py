"""Ray's private parts, all of them: what a new Ray may move without a word.

tests/ray_cluster/test_ray_private.py says what each use needs, and pyproject.toml allows the
releases of Ray with which that test passes. A name is imported when it is first asked for: whoever
wants the nodes needs neither Ray Data nor Ray Train.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import ray

from dopsd.signals import ENDS

_DATA, _TRAIN = "ray.data._internal", "ray.train.v2._internal.execution"
MODULES = {
    # data.stream.backpressure: how far the stream may run ahead
    "ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY": f"{_DATA}.execution.backpressure_policy",
    "BackpressurePolicy": f"{_DATA}.execution.backpressure_policy",
    "PhysicalOperator": f"{_DATA}.execution.interfaces",
    "InputDataBuffer": f"{_DATA}.execution.operators.input_data_buffer",
    # data.stream.pipeline: a pipeline that another thread can end
    "StreamingExecutor": f"{_DATA}.execution.streaming_executor",
    # learner.scaling_policy: learners that leave other roles their places
    "ElasticScalingPolicy": f"{_TRAIN}.scaling_policy",
    "NoopDecision": f"{_TRAIN}.scaling_policy",
    "ResizeDecision": f"{_TRAIN}.scaling_policy",
    "ScalingDecision": f"{_TRAIN}.scaling_policy",
    "ReschedulingState": f"{_TRAIN}.controller.state",
    "ResourceRequestPriority": f"{_DATA}.cluster_autoscaler.base_autoscaling_coordinator",
    # learner.rendezvous: learners that find each other on the loopback address
    "_TorchBackend": "ray.train.torch.config",
    "_set_torch_distributed_env_vars": "ray.train.torch.config",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"{__name__} has no {name}")
    return getattr(importlib.import_module(MODULES[name]), name)


@contextmanager
def bound_to_loopback() -> Iterator[bool]:
    """A Ray that is started meanwhile has the node address 127.0.0.1, to which all of its servers
    bind; it yields whether it has.

    Of `_node_ip_address` Ray makes an address that others reach. What Ray itself does on macOS it
    does here too, unless the environment asks for a cluster: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if name in os.environ:
        yield not ray_constants.ENABLE_RAY_CLUSTER
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # of children, and here
    try:
        yield True
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]


@contextmanager
def own_signals() -> Iterator[None]:
    """Where Ray is started or joined: its handlers do not replace ours, and what it starts lives on
    when a terminal hangs up or the whole process group is signalled (`timeout`, Ctrl-C), so that a
    run can still be saved. A signal that is blocked meanwhile is heard afterwards."""
    utils, worker = ray._private.utils, ray._private.worker
    services: Any = ray._private.services
    set_sigterm_handler, connect = utils.set_sigterm_handler, worker.connect
    popen = services.ConsolePopen

    def connect_quietly(*arguments: Any, **options: Any) -> Any:
        # Its C++ part ends the process at SIGTERM; its threads are to leave signals to ours.
        with _blocked(*ENDS):
            result = connect(*arguments, **options)
            if threading.current_thread() is threading.main_thread():
                for number in ENDS:
                    signal.signal(number, signal.getsignal(number))
        return result

    utils.set_sigterm_handler, worker.connect = lambda handler: None, connect_quietly
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        with _blocked(signal.SIGHUP):  # of children, as Ray does it with SIGINT
            yield
    finally:
        utils.set_sigterm_handler, worker.connect = set_sigterm_handler, connect
        services.ConsolePopen = popen


@contextmanager
def without_log_monitor() -> Iterator[None]:
    """A Ray that is started meanwhile has no process that reads every worker's log again and again
    for drivers that print it (`log_to_driver`); the logs themselves are written as ever."""
    node: Any = ray._private.node.Node
    before = node.start_log_monitor
    node.start_log_monitor = lambda self: None
    try:
        yield
    finally:
        node.start_log_monitor = before


@contextmanager
def quiet_about_token() -> Iterator[None]:
    """Whoever starts a Ray is not warned that its token authentication is on, as it should be; that
    it is off is said as before."""
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")

    def unless_on(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Token authentication is enabled")

    logger.addFilter(unless_on)
    try:
        yield
    finally:
        logger.removeFilter(unless_on)


@contextmanager
def _blocked(*numbers: int) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def session() -> str:
    """Names the cluster that this process is connected to, unlike every other."""
    node: Any = ray._private.worker.global_worker.node
    name: str = node.session_name
    return name


def started_processes() -> list[int]:
    """Of the cluster, what this process started: raylet, GCS and so on."""
    node: Any = ray._private.worker.global_worker.node
    return [process.pid for _, process in node.live_processes()]


def draining_nodes() -> dict[str, float]:
    """Nodes that the cluster is about to take away, by id, with the time (seconds since 1970) at
    which it does, 0 where that is not said; none without a cluster."""
    if not ray.is_initialized():
        return {}
    draining = ray._private.state.state.get_draining_nodes() or {}
    return {node: milliseconds / 1000 for node, milliseconds in draining.items()}


def nodes_of_job() -> set[str]:
    """Ids of the nodes on which actors of this job live."""
    _, gcs = _messages()
    job = ray.get_runtime_context().get_job_id()
    return {
        actor.address.node_id.hex()
        for actor in _actors(gcs)
        if actor.job_id.hex() == job and actor.state == gcs.ActorTableData.ALIVE
    }


def node_of_actor(actor: bytes) -> str | None:
    """Id of the node on which an actor lives or lived; None before it had one."""
    _, gcs = _messages()
    for found in _actors(gcs):
        if found.actor_id == actor:
            return found.address.node_id.hex() or None
    return None


def free_resources_per_node() -> dict[str, dict[str, float]]:
    """What nobody holds at this moment, by node id."""
    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return free


def execute(data: ray.data.Dataset) -> tuple[Iterator[Any], Any]:
    """Start a pipeline: its bundles of blocks, and the StreamingExecutor that can end it."""
    # What iter_internal_ref_bundles does, but keeping hold of the executor.
    bundles, _, executor = data._execute_to_iterator(capture_executor=False)
    return bundles, executor


def input_bundles(data: ray.data.Dataset) -> list[Any]:
    """What a dataset that is made of items hands to its pipeline."""
    made: Any = data._logical_plan.dag
    bundles: list[Any] = made.output_data()
    return bundles


def dataset_of_input(make: Callable[[ray.data.DataContext], Any]) -> ray.data.Dataset:
    """A dataset to map, whose input operator ``make`` makes when a pipeline of it starts."""
    from ray.data._internal.logical.interfaces import LogicalPlan
    from ray.data._internal.stats import DatasetStats

    context = ray.data.DataContext.get_current().copy()
    made = _made_input()([], make=make)
    return ray.data.Dataset(
        LogicalPlan(made, context), context, DatasetStats(metadata={}, parent=None)
    )


@cache
def _made_input() -> Any:
    """The logical operator of such an input; Ray's planner knows it from now on."""
    from ray.data._internal.logical.operators import InputData
    from ray.data._internal.planner.planner import Planner

    @dataclass(frozen=True, repr=False, eq=False)
    class MadeInput(InputData):  # type: ignore[misc]
        make: Any = None

    def plan(made: Any, children: list[Any], context: Any) -> Any:
        return made.make(context)

    # Before its base class: the first that fits is taken.
    Planner._DEFAULT_PLAN_FNS = {MadeInput: plan, **Planner._DEFAULT_PLAN_FNS}
    return MadeInput


def crashed_workers(since: float) -> list[dict[str, Any]]:
    """Of this job, the processes that ended although nobody asked them to, in that order, from
    ``since`` (seconds since 1970) on: the fields of ``dead_workers.DeadWorker``."""
    common, gcs = _messages()
    accessor = ray._private.state.state._connect_and_get_accessor()
    job = ray.get_runtime_context().get_job_id()
    expected = (common.INTENDED_SYSTEM_EXIT, common.INTENDED_USER_EXIT)
    records = map(gcs.WorkerTableData.FromString, accessor.get_worker_table())
    found = [
        record
        for record in records
        if not record.is_alive
        and record.end_time_ms >= 1000 * since
        and record.worker_type == common.WORKER
        and record.exit_type not in expected
        and record.job_id.hex() == job
    ]
    classes = _actor_classes() if found else {}
    return [
        {
            "worker_id": (worker_id := record.worker_address.worker_id.hex()),
            "node_id": record.worker_address.node_id.hex(),
            "host": record.worker_address.ip_address,
            "pid": record.pid,
            "job_id": job,
            "actor_class": classes.get(worker_id, ""),
            "why": record.exit_detail,
        }
        for record in sorted(found, key=lambda record: record.end_time_ms)
    ]


def living_actors(actor_class: str) -> set[bytes]:
    """Ids of this job's actors of a class that have not ended."""
    _, gcs = _messages()
    job = ray.get_runtime_context().get_job_id()
    return {
        actor.actor_id
        for actor in _actors(gcs)
        if actor.class_name == actor_class
        and actor.job_id.hex() == job
        and actor.state != gcs.ActorTableData.DEAD
    }


def kill_actor(actor: bytes) -> None:
    """One of them, by its id, without the handle that ``ray.kill`` takes."""
    worker: Any = ray._private.worker.global_worker
    worker.core_worker.kill_actor(ray.ActorID(actor), True)


def _actor_classes() -> dict[str, str]:
    """Class of the actor that lives or lived in a process, by the process's worker id."""
    _, gcs = _messages()
    return {actor.address.worker_id.hex(): actor.class_name for actor in _actors(gcs)}


def _actors(gcs: Any) -> Iterator[Any]:
    """What the cluster knows of every actor, dead ones too."""
    accessor = ray._private.state.state._connect_and_get_accessor()
    return map(gcs.ActorTableData.FromString, accessor.get_actor_table(None, None))


def _messages() -> tuple[Any, Any]:
    """The modules of Ray's own messages; what protobuf makes of them has no types."""
    from ray.core.generated import common_pb2, gcs_pb2

    return common_pb2, gcs_pb2


def logs_folder() -> str:
    """Where this node's Ray keeps the logs of its processes."""
    node: Any = ray._private.worker.global_worker.node
    folder: str = node.get_logs_dir_path()
    return folder
