"""The only importer of ray: do independent work on the machines of a cluster; what a lost worker did is done again."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from satdiff_cli.errors import ConfigError, SatdiffError

RETRIES = 3  # how often work is given to another worker after one was lost with it
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


class Pool(Generic[Item, Result]):
    """Give pieces of work to workers of a cluster, one at a time to each.

    Args:
        ray: The module, connected.
        build: Makes a worker, on the machine where it will work.
        count: Number of workers; 0 for one a GPU, or one a machine where no GPUs are asked for.
        gpus: GPUs that each takes.
    """

    def __init__(self, ray: Any, build: Callable[[], Worker[Item, Result]], *, count: int, gpus: float) -> None:
        self._ray = ray
        resources = ray.cluster_resources()
        if gpus > resources.get("GPU", 0):
            raise ConfigError(
                f"a worker is to take {gpus:g} GPUs, the cluster has {resources.get('GPU', 0):g}", "--gpus-per-worker 0"
            )
        count = count or (int(resources["GPU"] / gpus) if gpus else len(ray.nodes()))
        cpus = max(1, int(resources.get("CPU", count) / count))
        remote = ray.remote(_Actor).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=RETRIES, max_task_retries=RETRIES
        )
        self._actors = [remote.remote(build, str(Path.cwd())) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._actors)

    def run(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield each piece with its result as it is done. More pieces may be appended to a deque that is given.

        Raises:
            SatdiffError: A piece failed, or one lost a worker again and again.
        """
        left = items if isinstance(items, deque) else deque(items)
        idle = list(self._actors)
        busy: dict[Any, tuple[Any, Item]] = {}
        while left or busy:
            while left and idle:
                actor, item = idle.pop(), left.popleft()
                busy[actor.work.remote(item)] = actor, item
            (done,), _ = self._ray.wait(list(busy), num_returns=1)
            actor, item = busy.pop(done)
            idle.append(actor)
            yield item, fetch(self._ray, done)


class _Actor:
    """A worker in its own process; paths mean the same to it as here."""

    def __init__(self, build: Callable[[], Worker[Any, Any]], folder: str) -> None:
        os.chdir(folder)
        self._worker = build()

    def work(self, item: Any) -> Any:
        return self._worker.work(item)


def fetch(ray: Any, reference: Any) -> Any:
    """Wait for a result; a mistake that a worker found is raised as it would be here.

    Raises:
        SatdiffError: The work failed, or its worker was lost again and again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SatdiffError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise SatdiffError(
            f"a worker of the cluster was lost {RETRIES + 1} times with the same work: {str(error)[:300]}",
            "run the same command again: it goes on where it was; ray status and ray logs say why workers die",
        ) from error


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
            results[done] = fetch(ray, done)
            on_done(results[done])
        return [results[reference] for reference in references]
