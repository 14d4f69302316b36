"""A retrain or a tuning in a process of its own: one thread, lowest priority; its end harms nobody."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Any

import msgspec

from deploy import logs
from deploy.job import Job

LIMIT_S = 1_800.0  # of one retrain at the lowest priority beside other work, what a tuning takes for itself apart

Answer = dict[str, Any]  # what came of a job as plain values: the modules of its types stay outside the trainer


def work(job: Job, answer: Any) -> None:
    """Run one job and send what came of it back as JSON; lowest priority, one thread."""
    os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    logs.configure(job.logs)
    from deploy import retraining  # with it torch and half a gigabyte: in this process only

    answer.send_bytes(msgspec.json.encode((retraining.prepared if job.kind == "prepare" else retraining.judged)(job)))


def end_with_parent() -> None:
    """On Linux this process ends with the trainer that started it, however that ended: nobody waits for its verdict."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        parent = multiprocessing.parent_process()
        if parent is None or os.getppid() != parent.pid:
            os._exit(1)


def limit_s(kind: str, budget_ms: int) -> float:
    """How long one job may take until it is stopped; a tuning takes its budget on top.

    >>> limit_s("refresh", 600_000), limit_s("prepare", 600_000)
    (1800.0, 2400.0)
    """
    return LIMIT_S + (0 if kind == "refresh" else budget_ms / 1000)


class Child:
    """Where jobs run, one at a time."""

    def __init__(self) -> None:
        self._process: Any = None

    def run(self, job: Job, wanted: Any) -> Answer | str:
        """What came of it, or why nothing did; `wanted` is an event without which it is not to go on."""
        context, within_s = multiprocessing.get_context("spawn"), limit_s(job.kind, job.tune.budget_ms)
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(job, theirs), daemon=True)
        process.start()
        self._process = process
        if not wanted.is_set():  # it was lost while the process started
            process.kill()
        theirs.close()
        try:
            if mine.poll(within_s):
                return msgspec.json.decode(mine.recv_bytes(), type=Answer)
            return f"it took longer than {within_s:.0f} s and was stopped"
        except EOFError:
            process.join()
            return f"its process ended with code {process.exitcode}"
        finally:
            mine.close()
            process.kill()
            process.join()

    def kill(self) -> None:
        """End what runs; its `run` then says so."""
        if self._process is not None:
            self._process.kill()
