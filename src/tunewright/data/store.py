"""The token store: all sequences of a run's data in files, built once, opened at once, read where they are looked at.

A store is a folder in the user's cache, named by everything that decides what is in it. It is written aside and
renamed, so a broken one is never seen, and of two runs that need the same at once one waits for the other.

    tokens.bin      int32, the ids of all sequences, one behind the other
    runs.bin        RUN, their weights as runs of equal ones
    sequences.bin   SEQUENCE, one for each: where its tokens and runs end, its example
    examples.bin    EXAMPLE, one for each row that is an example: where its text ends, its hash, its place
    examples.jsonl  the examples, in words of our own
    account.json    what happened to every row
"""

import hashlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar, overload

import numpy as np
from pydantic import TypeAdapter

from tunewright.config.schema import SourceConfig
from tunewright.data.account import SHOWN_PLACES, Account, SourceAccount, add_all
from tunewright.data.content import from_json
from tunewright.data.examples import Encoded, EncodedSet, Example, Place
from tunewright.data.mix import Part
from tunewright.data.pack import EXAMPLE, RUN, SEQUENCE, Chunk, Job, Pack
from tunewright.data.split import hold_out, repeated
from tunewright.data.workers import pack_all
from tunewright.models.cache import MANIFEST, Notify, build_once, cache_root, forget_old, to_stderr, write_aside

SPOKEN_SECONDS = 10.0  # between two lines about progress
REMEMBERED = 100_000  # of so many examples and more it is kept which are held out: to find out takes a second

_ACCOUNT = TypeAdapter(Account)
_Item = TypeVar("_Item")


def open_store(key: str, chunks: Iterable[SourceAccount | Chunk], job: Job, notify: Notify = to_stderr) -> "Store":
    """The store of this key, built from `chunks` unless it is there.

    Among the chunks stands an account of each source before its first. Raises what reading them raises, UsageError
    for a template that can't be used, and RunError where the cache can't be written.
    """
    folder = stores_root() / key
    build_once(folder, lambda aside: _write(aside, chunks, job, notify), notify)
    with suppress(OSError):  # a cache that is only read is as good
        os.utime(folder / MANIFEST)
    return Store(folder)


def stores_root() -> Path:
    """The folder of all stores."""
    return cache_root() / "data"


class Store:
    """Sequences and examples on disk. Only what is looked at is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.account = _ACCOUNT.validate_json((folder / "account.json").read_bytes())
        self._tokens = _Items(folder / "tokens.bin", np.dtype("<i4"))
        self._runs = _Items(folder / "runs.bin", RUN)
        self._text = _Items(folder / "examples.jsonl", np.dtype("u1"))
        self.sequences = _mapped(folder / "sequences.bin", SEQUENCE)
        self.examples = _mapped(folder / "examples.bin", EXAMPLE)

    def encoded(self, sequence: int) -> Encoded:
        """One sequence, in memory of its own."""
        ids = self._tokens[_span(self.sequences["tokens_end"], sequence)]
        runs = self._runs[_span(self.sequences["runs_end"], sequence)]
        return Encoded(ids.astype(np.int32), np.repeat(runs["weight"], runs["length"]).astype(np.float32))

    def example(self, example: int) -> Example:
        """One example."""
        content = self._text[_span(self.examples["text_end"], example)]
        return from_json(content.tobytes(), self.place(example))

    def place(self, example: int) -> Place:
        """Where the row of an example stands."""
        return _place(self.account, self.examples[example])

    def held_out(self, size: float | None, seed: int) -> np.ndarray:
        """Numbers of the examples to validate on, int64: those of a validation file, or of `size` (see `hold_out`)."""
        training = self.training_examples
        if training < len(self.examples):
            return np.arange(training, len(self.examples))
        if len(self.examples) < REMEMBERED or not size:
            return hold_out(np.array(self.examples["hash"]), size, seed)
        memo = self.folder.with_name(f"{self.folder.name}.held-out-{size!r}-{seed}.bin")
        try:
            return np.fromfile(memo, np.int64)
        except FileNotFoundError:
            chosen = hold_out(np.array(self.examples["hash"]), size, seed)
            with suppress(OSError):
                write_aside(memo, chosen.tobytes())
            return chosen

    @property
    def training_examples(self) -> int:
        """Examples of the training sources; those of a validation file come after them."""
        return int(np.searchsorted(self.examples["source"], _training_sources(self.account)))

    def sides(self, held_out: np.ndarray, sources: Sequence[SourceConfig]) -> tuple["StoredSet", "StoredSet"]:
        """Training and validation sequences, in the order of the files; the former mixed as `sources` say."""
        mask = np.zeros(len(self.examples), bool)
        mask[held_out] = True
        mask = mask[self.sequences["example"]]
        train, validation = np.flatnonzero(~mask), np.flatnonzero(mask)
        return StoredSet(self, train, self._parts(train, sources)), StoredSet(self, validation)

    def _parts(self, train: np.ndarray, sources: Sequence[SourceConfig]) -> tuple[Part, ...]:
        if all(source.weight == 1 and source.num_samples is None for source in sources):
            return ()
        examples = self.sequences["example"][train]
        several = len(np.unique(examples)) < len(examples)
        ends = np.searchsorted(self.examples["source"][examples], np.arange(len(sources)), side="right").tolist()
        return tuple(
            Part(
                end - begin,
                source.weight,
                source.num_samples,
                examples[begin:end].astype(np.int32).tobytes() if several else b"",
            )
            for begin, end, source in zip([0, *ends], ends, sources, strict=False)
        )


@dataclass(frozen=True, slots=True)
class StoredSet(EncodedSet):
    """Some sequences of a store, by their numbers `index` int64; `mixed` says how sources share an epoch."""

    store: Store
    index: np.ndarray
    mixed: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Encoded:
        return self.store.encoded(int(self.index[index]))

    @property
    def lengths(self) -> np.ndarray:
        lengths: np.ndarray = np.diff(self.store.sequences["tokens_end"], prepend=0)[self.index]
        return lengths

    @property
    def rows(self) -> np.ndarray:
        rows: np.ndarray = self.store.sequences["example"][self.index]
        return rows

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.mixed or (Part(len(self)),)

    @property
    def supervised_tokens(self) -> int:
        return int(self.store.sequences["trained"][self.index].sum(dtype=np.int64))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.store.account.digest.encode() + self.index.tobytes()).hexdigest()

    @property
    def places(self) -> Sequence[Place]:
        return _Looked(lambda index: self.store.place(self._example(index)), len(self))

    @property
    def examples(self) -> Sequence[Example]:
        """The example of each sequence, read from disk whenever it is looked at."""
        return _Looked(lambda index: self.store.example(self._example(index)), len(self))

    def _example(self, index: int) -> int:
        return int(self.store.sequences["example"][self.index[index]])


class _Items:
    """The items of a file, read whenever they are asked for.

    Not mapped: what a long run or a look at every row touches of a map counts as this process's memory, and would
    grow to the size of the file.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._dtype = dtype
        self._one_at_a_time = Lock()  # of the threads that read: they share a position

    def __getitem__(self, span: slice) -> np.ndarray:
        size = self._dtype.itemsize
        with self._one_at_a_time:
            self._file.seek(span.start * size)
            return np.frombuffer(self._file.read((span.stop - span.start) * size), self._dtype)


class _Looked(Sequence[_Item]):
    """A sequence whose items are looked up when they are asked for."""

    def __init__(self, look_up: Callable[[int], _Item], length: int) -> None:
        self._look_up = look_up
        self._indices = range(length)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> _Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[_Item]: ...

    def __getitem__(self, index: int | slice) -> _Item | Sequence[_Item]:
        if isinstance(index, slice):
            return [self._look_up(i) for i in self._indices[index]]
        return self._look_up(self._indices[index])


def _write(folder: Path, chunks: Iterable[SourceAccount | Chunk], job: Job, notify: Notify) -> None:
    """Write a new store into an empty folder."""
    forget_old(folder.parent)
    account = Account()
    with _Writer(folder, account) as writer:
        for pack in _telling(pack_all(_registered(chunks, account), job), notify):
            writer.append(pack)
    account.digest = writer.digest
    _compare(account, _mapped(folder / "examples.bin", EXAMPLE), _mapped(folder / "sequences.bin", SEQUENCE))
    (folder / "account.json").write_bytes(_ACCOUNT.dump_json(account))


def _registered(chunks: Iterable[SourceAccount | Chunk], account: Account) -> Iterator[Chunk]:
    for item in chunks:
        if isinstance(item, Chunk):
            yield item
        else:
            account.sources.append(item)


def _telling(packs: Iterable[Pack], notify: Notify) -> Iterator[Pack]:
    """The same, with a line about progress where it takes long."""
    begin = spoken = time.monotonic()
    rows = 0
    for pack in packs:
        yield pack
        rows += pack.rows
        now = time.monotonic()
        if now - spoken > SPOKEN_SECONDS:
            notify(f"tokenising: {rows:,} rows so far, {rows / (now - begin):,.0f} a second")
            spoken = now


class _Writer:
    """Appends packs to the files of a store and their notes to its account."""

    def __init__(self, folder: Path, account: Account) -> None:
        self._account = account
        self._stack = ExitStack()
        names = ("tokens.bin", "runs.bin", "sequences.bin", "examples.bin", "examples.jsonl")
        self._files = [self._stack.enter_context((folder / name).open("wb")) for name in names]
        self._lengths = dict.fromkeys(("tokens", "runs", "text", "examples", "sequences"), 0)
        self._digests = [hashlib.sha256() for _ in range(3)]

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def digest(self) -> str:
        """Of all ids, weights and borders; however the rows came in chunks."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()

    def append(self, pack: Pack) -> None:
        """Positions and numbers of the pack become those of the store."""
        lengths, account = self._lengths, self._account
        if not account.files or account.files[-1] != pack.file:
            account.files.append(pack.file)
        pack.sequences["tokens_end"] += lengths["tokens"]
        pack.sequences["runs_end"] += lengths["runs"]
        pack.sequences["example"] += lengths["examples"]
        pack.examples["text_end"] += lengths["text"]
        pack.examples["file"] = len(account.files) - 1
        hashed = (pack.ids, pack.runs, np.ascontiguousarray(pack.sequences["tokens_end"]))
        for digest, array in zip(self._digests, hashed, strict=True):
            digest.update(array.tobytes())
        for file, part in zip(self._files, (pack.ids, pack.runs, pack.sequences, pack.examples), strict=False):
            file.write(part.tobytes())
        self._files[-1].write(pack.text)
        source = account.sources[pack.account]
        source.report.rows += pack.rows
        add_all(source.bad, pack.bad)
        account.notes.add(pack.notes)
        account.ends.add(pack.ends, lengths["sequences"])
        added = (len(pack.ids), len(pack.runs), len(pack.text), len(pack.examples), len(pack.sequences))
        for name, length in zip(lengths, added, strict=True):
            lengths[name] += length


def _compare(account: Account, examples: np.ndarray, sequences: np.ndarray) -> None:
    """Among the rows that are kept find those that equal an earlier one, and held-out ones that are trained on too."""
    kept = examples[np.unique(sequences["example"])]
    training, held_out = np.split(kept, [np.searchsorted(kept["source"], _training_sources(account))])
    account.duplicates = len(repeated(training["hash"])) + len(repeated(held_out["hash"]))
    overlap = held_out[np.isin(held_out["hash"], training["hash"])]
    account.overlap.count = len(overlap)
    for row in overlap[:SHOWN_PLACES]:
        account.overlap.first.append(_place(account, row))


def _place(account: Account, example: np.ndarray) -> Place:
    return Place(account.files[example["file"]], int(example["line"]), int(example["row"]))


def _training_sources(account: Account) -> int:
    """How many sources are trained on; that of a validation file comes after them."""
    return len({source.number for source in account.sources if not source.held_out})


def _span(ends: np.ndarray, index: int) -> slice:
    """From the end of the one before to the end of this one."""
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The items of a file, mapped into memory; a plain array, since those of memmap are slow to cut."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)  # nothing can't be mapped
    return np.asarray(np.memmap(path, dtype, mode="r"))
