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
from contextlib import ExitStack, suppress
from itertools import chain
from queue import SimpleQueue
from typing import IO, Any

from tunewright.data.pack import Chunk, Job, Pack, Packer
from tunewright.errors import RunError, UsageError

ALONE = 5_000  # rows prepared here before workers start: they take a second to import what they need
MOST = 16  # processes; each holds about 150 MB
MOST_WAITING = 6  # packs for each worker that are kept until the ones before them are done
COLLECTED_EVERY = 100_000  # objects made before a worker looks for garbage, of which rows leave hardly any
THREADS = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pack_all(chunks: Iterable[Chunk], job: Job, workers: int | None = None, alone: int = ALONE) -> Iterator[Pack]:
    """The pack of each chunk, in order. At most a few chunks for each worker are read ahead.

    `workers` processes, one for each core unless given, share the work once `alone` rows are done. This process is one
    of them: it packs what the others have no hands free for, also while they start. Raises UsageError as Packer does,
    and RunError where a worker dies.
    """
    others = (cores() if workers is None else workers) - 1
    chunks, rows = iter(chunks), 0
    packer = Packer(job)
    for chunk in chunks:
        yield packer.pack(chunk)
        rows += len(chunk.rows)
        if rows >= alone and others > 0:
            break
    with ExitStack() as stack:
        first = next(chunks, None)
        if first is None:
            return
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(others):
            idle.put(stack.enter_context(_Worker(job)))
        pool = stack.enter_context(ThreadPoolExecutor(others))
        waiting: deque[Future[Pack]] = deque()
        try:
            for chunk in chain([first], chunks):
                if sum(not each.done() for each in waiting) < 2 * others:
                    waiting.append(pool.submit(_pack_in_one, idle, chunk))
                else:
                    waiting.append(_done(packer.pack(chunk)))
                while waiting and (waiting[0].done() or len(waiting) > MOST_WAITING * others):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _done(pack: Pack) -> "Future[Pack]":
    future: Future[Pack] = Future()
    future.set_result(pack)
    return future


def cores() -> int:
    """Cores this process may use, at most `MOST`."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(allowed, MOST)


def _pack_in_one(idle: "SimpleQueue[_Worker]", chunk: Chunk) -> Pack:
    worker = idle.get()
    try:
        return worker.pack(chunk)
    finally:
        idle.put(worker)


class _Worker:
    """This process's end of one worker."""

    def __init__(self, job: Job) -> None:
        environment = dict.fromkeys(THREADS, "1") | {"TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunewright.data.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._job, self._begun = job, False

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *error: object) -> None:
        """Let it end; it is killed where it is in the midst of work that nobody waits for."""
        if error[0] is not None:
            self._process.kill()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a dead worker: what it was sent last is still to be written
            self._process.stdin.close()
        with self._process:  # closes the other pipe and waits
            pass

    def pack(self, chunk: Chunk) -> Pack:
        """Hand over a chunk and wait for what comes of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            sent = pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)
        except RecursionError:  # of a row nested deeper than can be sent, which is so rare that time does not matter
            return Packer(self._job).pack(chunk)
        try:
            if not self._begun:
                _send(self._process.stdin, self._job)
                self._begun = True
            self._process.stdin.write(sent)
            self._process.stdin.flush()
            result = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:  # it died before or amid its answer
            code = self._process.wait()
            killed = "; it was killed, most likely for want of memory" if code == -signal.SIGKILL else ""
            raise RunError(f"a process that prepares data ended with code {code}{killed}") from error
        if isinstance(result, UsageError):
            raise result
        assert isinstance(result, Pack)
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
        gc.freeze()  # libraries and tokenizer stay; to go through them again and again takes a tenth of the time
        gc.set_threshold(COLLECTED_EVERY)
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
