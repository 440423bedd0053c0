"""Several ranks on one machine: runs a test's function in each process of a gloo group."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from filelock import FileLock

if TYPE_CHECKING:
    import pytest

# One process imports the package and is forked for every rank: importing is most of the time that a rank takes. (Forking the tests' own
# process would not do: autograd has run there.)
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["fla_mesa"])


def run_on_ranks(
    function: Callable[..., Any], size: int, folder: Path, *args: Any, timeout: float = 600, connect: bool = True
) -> list[Any]:
    """Runs ``function(*args)`` of an importable module on every rank of a gloo group; returns the results by rank.

    Args:
        function: It finds the group by ``torch.distributed``.
        size: How many ranks.
        folder: An empty folder, where they find each other.
        args: Passed on.
        timeout: Seconds until those that have not ended are killed.
        connect: Whether to make the group. Otherwise the environment is torchrun's, and the function does.

    Raises:
        AssertionError: A rank raised (with its traceback), or took too long.
    """
    answers, port = _server.Queue(), _free_port()
    ranks = [
        _server.Process(
            target=_rank,
            args=(rank, size, str(folder) if connect else None, port, answers, function, args),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < size:
            rank, result, error = answers.get(timeout=timeout)
            assert error is None, f"rank {rank} (exit codes so far: {[one.exitcode for one in ranks]}):\n{error}"
            results[rank] = result
    except queue.Empty:
        raise AssertionError(f"ranks {sorted(set(range(size)) - set(results))} did not end in {timeout} s") from None
    finally:
        for process in ranks:
            process.join(None if len(results) == size else 0)
            process.kill()
    return [results[rank] for rank in range(size)]


def run_once(factory: pytest.TempPathFactory, function: Callable[..., Any], size: int) -> list[Any]:
    """``run_on_ranks``, once for all processes that share the tests (pytest -n)."""
    folder = factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    answer = folder / f"{function.__module__}.{function.__name__}.pickle"
    with FileLock(f"{answer}.lock"):
        if not answer.exists():
            answer.write_bytes(pickle.dumps(run_on_ranks(function, size, factory.mktemp("ranks"))))
    return pickle.loads(answer.read_bytes())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(
    rank: int, size: int, folder: str | None, port: int, answers: Any, function: Callable[..., Any], args: tuple
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        if folder is not None:
            dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
        result = function(*args)
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:  # the other ranks may be waiting for this one: say so at once
        answers.put((rank, None, traceback.format_exc()))
        raise
    answers.put((rank, result, None))
