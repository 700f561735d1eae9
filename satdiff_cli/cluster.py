"""The only importer of ray: do independent work on the machines of a cluster; what a lost worker did is done again."""

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from satdiff_cli.errors import ConfigError, SatdiffError

RETRIES = 3  # how often work is given to another worker after one was lost with it
START_SECONDS = 300.0  # how long the cluster may take to start a worker while no other works
_REASON_CHARS = 400  # of what Ray says: the cause stands at its end
_STORE_BYTES = 2**27  # workers exchange names of files, not pixels

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Worker(Protocol[Item_contra, Result_co]):
    """Holds what its work needs, and does it piece by piece."""

    def work(self, item: Item_contra) -> Result_co:
        """Do a piece of work; a piece that was begun before and lost is done again."""


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster, or start one on this machine; within another such block nothing is to be done.

    Yields:
        The module ``ray``.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs the package ray", "pip install 'satdiff[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot reach a Ray cluster at {address!r}: {error}",
            "start one with ray start --head; --address HOST:PORT",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Job(Generic[Item]):
    """What an actor was told to do: a piece of work, or None: to get ready; and how often that was lost before."""

    actor: Any
    item: Item | None
    losses: int


class _LostError(Exception):
    """A worker ended before its work did; the message is what Ray says of it."""


class Pool(Generic[Item, Result]):
    """Give pieces of work to workers of a cluster, one at a time to each that runs; leaving the block ends them.

    Workers for which there is no room yet, because others use the cluster or a machine was lost, take part as soon as
    there is.

    Args:
        ray: The module, connected.
        build: Makes a worker, on the machine where it will work.
        count: Number of workers; 0 for one a GPU, or one a machine where no GPUs are asked for.
        gpus: GPUs that each takes.

    Attributes:
        room: How many of the workers the cluster can hold.
    """

    def __init__(self, ray: Any, build: Callable[[], Worker[Item, Result]], *, count: int, gpus: float) -> None:
        self._ray = ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.room, cpus = fit_workers(nodes, count, gpus)
        self._count = count or self.room
        self._needs = f"{cpus} CPUs and {gpus:g} GPUs each, the cluster has {_describe(nodes)}"
        self._arguments = (build, str(Path.cwd()))
        self._actor = ray.remote(_Actor).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._started: list[Any] = []

    def __enter__(self) -> "Pool[Item, Result]":
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        for actor in self._started:
            self._kill(actor)

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield each piece with its result as it is done. More pieces may be appended to a deque that is given.

        Raises:
            SatdiffError: A worker could not be built or a piece failed, a piece lost a worker again and again, or no
                worker could be started.
        """
        left = items if isinstance(items, deque) else deque(items)
        again: deque[tuple[Item, int]] = deque()
        idle: list[Any] = []
        jobs = dict(self._start(0) for _ in range(self._count))
        while left or again or any(job.item is not None for job in jobs.values()):
            while idle and (left or again):
                actor = idle.pop()
                item, losses = again.popleft() if again else (left.popleft(), 0)
                jobs[actor.work.remote(item)] = _Job(actor, item, losses)
            done = self._wait(jobs)
            job = jobs.pop(done)
            try:
                result = _get(self._ray, done)
            except _LostError as error:
                losses = job.losses + 1
                self._kill(job.actor)  # Ray may have lost sight of it only
                if job.item is not None:
                    if losses > RETRIES:
                        raise _give_up(error, "with the same work") from error
                    again.append((job.item, losses))
                    jobs |= [self._start(0)]
                elif losses <= RETRIES:
                    jobs |= [self._start(losses)]
                elif not idle and not jobs:
                    raise _give_up(error, "while it started") from error
                continue
            idle.append(job.actor)
            if job.item is not None:
                yield job.item, result

    def _start(self, losses: int) -> tuple[Any, _Job[Item]]:
        """Start an actor, which takes time if there is room, and otherwise waits for it; return what to wait for."""
        actor = self._actor.remote(*self._arguments)
        self._started.append(actor)
        return actor.ready.remote(), _Job(actor, None, losses)

    def _kill(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _wait(self, jobs: Mapping[Any, _Job[Item]]) -> Any:
        """Wait for the first job that ends."""
        is_working = any(job.item is not None for job in jobs.values())
        done, _ = self._ray.wait(list(jobs), num_returns=1, timeout=None if is_working else START_SECONDS)
        if not done:
            raise SatdiffError(
                f"the cluster has started no worker in {START_SECONDS:g} s: they ask for {self._needs}",
                "ray status says what else uses them; --workers N asks for fewer CPUs each",
            )
        return done[0]


def fit_workers(nodes: Sequence[Mapping[str, float]], count: int, gpus: float) -> tuple[int, int]:
    """Choose the CPUs that a worker asks for: as many as leave room for all workers, or for as many as possible.

    Args:
        nodes: Resources of each machine, as Ray names them.
        count: Number of workers; 0 for one a GPU, or one a machine where no GPUs are asked for.
        gpus: GPUs that each takes.

    Returns:
        How many workers there is room for, at most ``count``, and the CPUs that each asks for.

    Raises:
        ConfigError: No machine has room for a worker.
    """
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"a worker cannot take {gpus:g} GPUs", "--gpus-per-worker 1")
    sizes = [(int(node.get("CPU", 0)), _count_shares(int(node.get("GPU", 0)), gpus)) for node in nodes]

    def count_places(cpus: int) -> int:
        return sum(min(own_cpus // cpus, shares) for own_cpus, shares in sizes)

    asked = count or (count_places(1) if gpus else sum(cpus > 0 for cpus, _ in sizes))
    room = min(asked, count_places(1))
    if not room:
        raise ConfigError(
            f"a worker is to take a CPU and {gpus:g} GPUs of one machine, the cluster has {_describe(nodes)}",
            "--gpus-per-worker 0 --device cpu" if gpus else "ray start --num-cpus N on its machines",
        )
    return room, max(cpus for cpus in range(1, 1 + max(cpus for cpus, _ in sizes)) if count_places(cpus) >= room)


def _count_shares(gpus: int, share: float) -> int:
    """Count the workers for which GPUs of a machine suffice; a share of less than 1 is of a single GPU."""
    if not share:
        return sys.maxsize
    return gpus * int(1 / share + 1e-9) if share < 1 else gpus // int(share)


def _describe(nodes: Sequence[Mapping[str, float]]) -> str:
    """Say what machines have."""
    own = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
    return ", ".join(f"{number} x {what}" for what, number in Counter(own).items()) or "no machine"


class _Actor:
    """A worker in its own process; paths mean the same to it as here."""

    def __init__(self, build: Callable[[], Worker[Any, Any]], folder: str) -> None:
        self._build = build
        self._folder = folder

    def ready(self) -> None:
        """Build the worker: not above, where Ray would take a mistake that it finds for a lost worker."""
        os.chdir(self._folder)
        self._worker = self._build()

    def work(self, item: Any) -> Any:
        return self._worker.work(item)


def _get(ray: Any, reference: Any) -> Any:
    """Wait for a result; a mistake that a worker found is raised as it would be here.

    Raises:
        SatdiffError: The work failed.
        _LostError: Its worker was lost.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SatdiffError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise _LostError(str(error)[-_REASON_CHARS:].strip()) from error


def _give_up(error: _LostError, where: str) -> SatdiffError:
    return SatdiffError(
        f"a worker of the cluster was lost {RETRIES + 1} times {where}: {error}",
        "run the same command again: it goes on where it was; ray status and ray logs say why workers die",
    )


def _call(function: Callable[[Item], Result], item: Item, folder: str) -> Result:
    os.chdir(folder)
    return function(item)


def map_on_cluster(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    address: str,
    on_done: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Apply a function to items on a cluster, a CPU each, and return the results in order."""
    with connect(address) as ray:
        remote = ray.remote(_call).options(num_cpus=1, max_retries=RETRIES)
        references = [remote.remote(function, item, str(Path.cwd())) for item in items]
        waiting, results = list(references), {}
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                results[done] = _get(ray, done)
            except _LostError as error:
                raise _give_up(error, "with the same work") from error
            on_done(results[done])
        return [results[reference] for reference in references]
