"""Prepare chunks of rows in several processes, with their results in order; a little data stays in this one.

A worker is a plain `python -m tunewright.data.workers` that reads chunks from its standard input and writes packs to
its standard output. So nothing is forked while threads run, and no script of the user is imported a second time, which
the ways of `multiprocessing` come with. A worker ends when its input does, also where this process is killed.

A file of the user's folder that is called like a module of Python is never run: `-P` keeps that folder out of the way.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from queue import SimpleQueue
from typing import IO, Any

from tunewright.data.pack import Chunk, Job, Pack, Packer
from tunewright.errors import RunError, UsageError

ALONE = 5_000  # rows that one process prepares: others take a second to import what they need
MOST = 16  # processes; each holds about 150 MB
MOST_WAITING = 6  # packs for each worker that are kept until the ones before them are done
COLLECTED_EVERY = 100_000  # objects made before one looks for garbage, of which rows leave hardly any
THREADS = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pack_all(chunks: Iterable[Chunk], job: Job, workers: int | None = None, alone: int = ALONE) -> Iterator[Pack]:
    """The pack of each chunk, in order. At most a few chunks for each worker are read ahead.

    `workers` processes, one for each core unless given, share the work where there are more than `alone` rows. This
    process is one of them: it packs what the others have no hands free for, also while they start. Raises UsageError as
    Packer does, and RunError where a worker dies.
    """
    chunks = iter(chunks)
    begun: list[Chunk] = []
    while sum(len(chunk.rows) for chunk in begun) < alone and (chunk := next(chunks, None)) is not None:
        begun.append(chunk)
    more = list(islice(chunks, 1))
    others = (cores() if workers is None else workers) - 1 if more else 0
    packer = Packer(job)
    with ExitStack() as stack:
        stack.enter_context(seldom_collected())
        if others == 0:
            yield from map(packer.pack, chain(begun, more, chunks))
            return
        helpers = [stack.enter_context(_Worker()) for _ in range(others)]
        pool = stack.enter_context(ThreadPoolExecutor(others))
        idle: SimpleQueue[_Worker] = SimpleQueue()
        starts = [pool.submit(_start, worker, job, idle) for worker in helpers]
        waiting: deque[Future[Pack]] = deque()
        try:
            for chunk in chain(begun, more, chunks):
                ready = sum(start.result() for start in starts if start.done())
                if sum(not each.done() for each in waiting) < 2 * ready:
                    waiting.append(pool.submit(_pack_in_one, idle, chunk, job))
                else:
                    waiting.append(_done(packer.pack(chunk)))
                while waiting and (waiting[0].done() or len(waiting) > MOST_WAITING * others):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for worker, start in zip(helpers, starts, strict=True):
                if not start.done():
                    worker.kill()
            pool.shutdown(cancel_futures=True)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for garbage seldom, and not in what is there already, libraries above all: a tenth of the time or more."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECTED_EVERY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _done(pack: Pack) -> "Future[Pack]":
    future: Future[Pack] = Future()
    future.set_result(pack)
    return future


def cores() -> int:
    """Cores this process may use, at most `MOST`."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(allowed, MOST)


def _start(worker: "_Worker", job: Job, idle: "SimpleQueue[_Worker]") -> bool:
    worker.ask(job)
    idle.put(worker)
    return True


def _pack_in_one(idle: "SimpleQueue[_Worker]", chunk: Chunk, job: Job) -> Pack:
    worker = idle.get()
    try:
        pack = worker.ask(chunk)
    except RecursionError:  # of a row nested deeper than can be sent, which is so rare that time does not matter
        return Packer(job).pack(chunk)
    finally:
        idle.put(worker)
    assert pack is not None
    return pack


class _Worker:
    """This process's end of one worker."""

    def __init__(self) -> None:
        environment = dict.fromkeys(THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunewright.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *error: object) -> None:
        """Let it end; it is killed where it is in the midst of work that nobody waits for."""
        if error[0] is not None:
            self.kill()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a dead worker: what it was sent last is still to be written
            self._process.stdin.close()
        with self._process:  # closes the other pipe and waits
            pass

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def ask(self, item: Job | Chunk) -> Pack | None:
        """Hand over the job, which is answered by None, or a chunk, and wait for what comes of it.

        Raises RecursionError before anything is sent, UsageError as Packer does, RunError where the worker died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        sent = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        try:
            self._process.stdin.write(sent)
            self._process.stdin.flush()
            result = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:  # it died before or amid its answer
            code = self._process.wait()
            killed = "; it was killed, most likely for want of memory" if code == -signal.SIGKILL else ""
            raise RunError(f"a process that prepares data ended with code {code}{killed}") from error
        if isinstance(result, UsageError):
            raise result
        assert result is None or isinstance(result, Pack)
        return result


def _send(pipe: IO[bytes], item: Any) -> None:
    pickle.dump(item, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _serve() -> None:
    """What a worker does: packs for chunks, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    chunks, packs = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else must write between packs
    try:
        packer = Packer(pickle.load(chunks))
        _send(packs, None)
        with seldom_collected():
            while True:
                chunk = pickle.load(chunks)
                try:
                    result: Pack | UsageError = packer.pack(chunk)
                except UsageError as error:
                    result = error
                _send(packs, result)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        return


if __name__ == "__main__":
    _serve()
