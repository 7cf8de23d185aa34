"""From shards to encoded micro-batches: one Ray Data pipeline for a whole run.

A pool of actors turns spans of the plan into pixels and prompts; another one, each actor with
frozen encoders that are loaded once, turns those into contexts. No process is born once both are
up. The consumer gets references, one per micro-batch in plan order; it never fetches a block.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import GetTimeoutError

from dopsd.data.context_cache.files import CachedSegmentReader, ContextCache, pixel_mask
from dopsd.data.planning.plan import Plan
from dopsd.data.ray_data import (
    LazyActorState,
    absolute_path,
    quiet_context,
    shipping_errors,
    unwrap_error,
)
from dopsd.data.read import ReadSpec, SegmentReader, samples_of
from dopsd.data.sample import Encoder, EncoderFactory
from dopsd.data.stream import backpressure as window
from dopsd.data.stream.block import encoded_block
from dopsd.data.stream.windowed_input import from_items_by_windows
from dopsd.errors import DeadlineError
from dopsd.ray_cluster.process import peak_memory_mb
from dopsd.ray_cluster.ray_private import StreamingExecutor, execute
from dopsd.records import EncodedBatch, SampleInfo

_READING_CPUS = 0.1
"""What all readers of a stream hold: they wait most of the time, and roles may leave no more."""
_CPUS_OF_TWO_READERS = 8
"""Fewer CPUs are busy with everything else: a second reader is a process to start for nothing."""
BlockRef = tuple[int, int, ray.ObjectRef]
"""(step, index within the step, reference of the block). Pass the reference to a task, which
receives the block itself, and there call :func:`dopsd.data.stream.block.load_encoded`."""


class EncodedStream(Iterator[BlockRef]):
    """Blocks of one pipeline. Any thread may close it, also while another one waits for a block."""

    def __init__(
        self, blocks: Generator[BlockRef, None, None], opened: list[StreamingExecutor]
    ) -> None:
        self._blocks, self._opened = blocks, opened

    def __next__(self) -> BlockRef:
        return next(self._blocks)

    def close(self) -> None:
        """End the pipeline and its actors, those that hang as well."""
        for executor in self._opened:
            executor.shutdown(force=True)
        with contextlib.suppress(ValueError):  # another thread is in it, and wakes up now
            self._blocks.close()


def encoded_stream(
    plan: Plan,
    start_step: int,
    stop_step: int,
    *,
    shards: str,
    read_spec: ReadSpec,
    encoder_factory: EncoderFactory,
    context_cache: ContextCache | None = None,
    workers: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    options: Mapping[str, Any] | None = None,
    readers: int | None = None,
    ahead: int | None = None,
    start_s: float = 900.0,
) -> EncodedStream:
    """Every micro-batch of the steps [start_step, stop_step), encoded, in plan order.

    With a ``context_cache`` contexts are read, and no encoder starts. Otherwise
    ``workers`` encoder actors take ``num_cpus`` and ``num_gpus`` each, with more of Ray's
    ``options``; ``readers`` actors
    (default: two, but one where the cluster has fewer than 8 CPUs) share 0.1 CPUs; ``read_spec``:
    what they read of each sample.
    Nothing starts before the first ``next``, which waits until every encoder is loaded. At most
    ``ahead`` micro-batches (default: two steps, at least 4) are read, encoded or waiting beyond
    what was taken. Closing the iterator ends the pool. Errors of tasks and encoders are raised
    as DopsdErrors with their own message; DeadlineError when the pool is not up within ``start_s``
    seconds.
    """
    opened: list[StreamingExecutor] = []

    def blocks() -> Generator[BlockRef, None, None]:
        first, last = plan.number(start_step), plan.number(stop_step)
        if first >= last:
            return
        window_size = ahead or max(4, 2 * plan.micro_batches_per_step)
        folder = absolute_path(shards)
        # Several micro-batches in a reading call: fewer calls to schedule, and their row groups are
        # read once. Half the window at most, so that encoders have the other half to work on.
        size = max(1, min(window_size // 2, 8))
        spans = (
            {"start": start, "stop": min(start + size, last)} for start in range(first, last, size)
        )
        expected = map(plan.key_at, range(first, last))
        executor: Any = None
        pool = readers or (
            2 if ray.cluster_resources().get("CPU", 0) >= _CPUS_OF_TWO_READERS else 1
        )
        try:
            with ray.data.DataContext.current(_context(window_size, size, pool, start_s)):
                data = from_items_by_windows(spans)
                reading: tuple[Any, ...] = (plan, folder, read_spec)
                data = data.map_batches(
                    CachedSegmentReader if context_cache else SegmentReader,
                    fn_constructor_args=(*reading, context_cache) if context_cache else reading,
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=pool),
                    num_cpus=_READING_CPUS / pool,
                )
                if context_cache is None:
                    data = data.map_batches(
                        _Encode,
                        fn_constructor_args=(encoder_factory,),
                        batch_size=1,
                        batch_format="pyarrow",
                        compute=ray.data.ActorPoolStrategy(size=workers),
                        num_cpus=num_cpus,
                        num_gpus=num_gpus,
                        **(options or {}),
                    )
                blocks, executor = execute(data)
                opened.append(executor)
            for bundle in blocks:
                for entry in bundle.blocks:
                    assert entry.metadata.num_rows == 1, "one block per micro-batch"
                    step, index = next(expected)
                    yield step, index, entry.ref
            assert next(expected, None) is None, "the pipeline ended early"
        except GetTimeoutError:
            # Whoever reads a context cache has readers alone.
            who, count, cpus, gpus = ("encoder", workers, num_cpus, num_gpus)
            if context_cache:
                who, count, cpus, gpus = ("reader", pool, _READING_CPUS / pool, 0.0)
            raise DeadlineError(
                f"{who} timed out after {start_s:g} s while loading {count} actors of "
                f"{cpus:g} CPUs and {gpus:g} GPUs (timeouts.startup={start_s:g})"
            ) from None
        except Exception as error:
            raise unwrap_error(error, "encoder") from None
        finally:
            if executor is not None:
                # A consumer that stops early frees the encoders' devices now: without force the
                # actors were seen to live on. Blocks that were handed out are not theirs and stay.
                executor.shutdown(force=True)

    return EncodedStream(blocks(), opened)


def _context(ahead: int, segment: int, readers: int, start_s: float) -> ray.data.DataContext:
    context = quiet_context()
    context.execution_options.preserve_order = True
    # Each row (a micro-batch) becomes a block of its own, hence a reference of its own.
    context.target_max_block_size = 1
    # A consumer may pause for as long as it likes; whoever waits for a block has the deadline.
    context.execution_no_progress_timeout_s = -1
    # Without actors nothing can leave the window, and Ray Data, seeing an idle pipeline, would
    # admit reading calls past any policy for as long as the encoders load.
    context.wait_for_min_actors_s = max(1, round(start_s))
    window.apply_window(context, ahead, segment, readers)
    return context


class _Encode:
    """The actor of the pool: one micro-batch in, one EncodedBatch out."""

    def __init__(self, factory: EncoderFactory) -> None:
        self._encoder = LazyActorState(factory)
        self._worker = ray.get_runtime_context().get_actor_id() or ""

    def __call__(self, batch: pa.Table) -> pa.Table:
        with shipping_errors():
            return encode_micro_batch(batch, self._encoder.get(), self._worker)


def encode_micro_batch(batch: pa.Table, encoder: Encoder, worker: str = "") -> pa.Table:
    """A read micro-batch (one row of ``read.READ_SCHEMA``) to a block of the stream.

    ``worker``: id of the encoder's actor, for the run's timeline.
    """
    (values,) = batch.to_pylist()
    samples = samples_of(values)
    began = time.perf_counter()
    student, teacher, target = encoder.encode(samples)
    class_student = encoder.encode_class(samples) if values["class_prompts"] else None
    stats = {
        "seconds": time.perf_counter() - began,
        "peak_memory_mb": peak_memory_mb(),
        "ended": time.time(),
        "worker": worker,
    }
    mask, info = pixel_mask(values), SampleInfo.of(values)
    batch = EncodedBatch(info, student, teacher, target, mask, class_student, stats)
    return encoded_block(batch)
