"""Damage files of every kind at random, and expect rows or one clear sentence, never a traceback.

    python -m tests.fuzz_readers [MINUTES] [SEED]

Each round takes a sound file, damages it a little, reads it in a child process and throws it away; a child that dies
names the round, and `SEED` with the same number of rounds gives it again. Ends with 1 at the first fault.
"""

import gzip
import io
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.config.schema import SourceConfig
from tunewright.data.read import read_rows
from tunewright.errors import UsageError

ROUNDS = 400  # in each child
ROWS = [
    {"q": f"问题 {i}", "a": 'an "answer",\n' * (i % 4), "n": i, "turns": [["x", None]] * (i % 3)} for i in range(40)
]
SPLICES = (
    b"", b"\0", b"\xff", b'"', b"'", b"{", b"}", b"[", b"]", b",", b"\\", b"\\ud800", b"\n", b"\r", b"\xef\xbb\xbf",
    b"\xc4\xe3", b";", b"\t", b"1e999", b"-", b"NaN", b"9" * 5000, b"[" * 2000, b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x10",
)  # fmt: skip
ENCODINGS = (None, None, None, "utf-8", "gb18030", "utf-16", "utf-7", "shift_jis", "idna", "undefined")


def sound_files() -> dict[str, bytes]:
    """A file of every kind by name."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    table = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    cells = [[row["q"], row["a"], row["n"]] for row in ROWS]
    quoted = "".join(
        ",".join(json.dumps(str(cell), ensure_ascii=False).replace('\\"', '""') for cell in row) + "\n" for row in cells
    )
    files = {
        "rows.jsonl": lines,
        "rows.json": json.dumps(ROWS, ensure_ascii=False, indent=1).encode(),
        "rows.csv": ("q,a,n\n" + quoted).encode(),
        "gbk.csv": ("q,a,n\n" + quoted).encode("gb18030"),
        "rows.tsv": ("q\ta\n" + "1\t2\n" * 20).encode(),
        "rows.txt": lines,
        "rows.md": lines,
        "utf16.txt": lines.decode().encode("utf-16"),
        "rows.jsonl.gz": gzip.compress(lines),
    }
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(lines)
    files["rows.jsonl.zst"] = packed.getvalue().to_pybytes()
    for compression in ("snappy", "zstd", "none"):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=compression, row_group_size=15)
        files[f"{compression}.parquet"] = buffer.getvalue()
    for name, opened in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        buffer = io.BytesIO()
        with opened(buffer, table.schema) as writer:
            writer.write_table(table, 15)
        files[name] = buffer.getvalue()
    book = openpyxl.Workbook()
    for row in (["q", "a", "n"], *cells):
        book.active.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    files["rows.xlsx"] = buffer.getvalue()
    return files


def damage(content: bytes, chance: random.Random) -> bytes:
    """Up to four times: splice something in, flip bits, cut, repeat or swap a stretch."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(content))
        end = min(len(content), at + chance.choice((0, 1, 2, 8, 60)))
        way = chance.randrange(5)
        if way == 0:
            content = content[:at] + chance.choice(SPLICES) + content[end:]
        elif way == 1:
            flipped = bytes(byte ^ (1 << chance.randrange(8)) for byte in content[at:end])
            content = content[:at] + flipped + content[end:]
        elif way == 2 and chance.random() < 0.3:
            content = content[:at]
        elif way == 3:
            content = content[:end] + content[at:end] * chance.choice((1, 2, 50)) + content[end:]
        else:
            content = content[:at] + chance.randbytes(end - at) + content[end:]
    return content


def run(seed: int, folder: str, results: "multiprocessing.Queue[dict[str, int]]") -> None:
    """One child: `ROUNDS` rounds, and how they ended by kind of file."""
    chance = random.Random(seed)
    files = sound_files()
    ends: Counter[str] = Counter()
    for number in range(ROUNDS):
        name = chance.choice(list(files))
        content = damage(files[name], chance)
        path = Path(folder) / name
        path.write_bytes(content)
        (Path(folder) / "round").write_text(f"{seed} {number} {name}")
        text = not name.endswith((".parquet", ".arrow", ".xlsx"))
        source = SourceConfig(path=name, encoding=chance.choice(ENCODINGS) if text else None)
        try:
            for row, place in read_rows(source, Path(folder), notify=lambda _: None):
                if not isinstance(row, dict) or place.line < 1 or place.file != name:
                    raise AssertionError(f"no row: {row!r} {place}")
            ends[f"{name}: read"] += 1
        except UsageError as refused:
            if not str(refused).startswith((name, "data.train")) or "\n" in str(refused):
                raise AssertionError(f"no clear sentence: {refused}") from refused
            ends[f"{name}: refused"] += 1
    results.put(dict(ends))


def main(minutes: float = 10, seed: int = 0) -> int:
    """Fuzz for so many minutes; 0 if all went well."""
    start = time.monotonic()
    ends: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="tunewright-fuzz-") as folder:
        while time.monotonic() - start < 60 * minutes:
            results = context.Queue()
            child = context.Process(target=run, args=(seed, folder, results))
            child.start()
            child.join()
            if child.exitcode != 0:
                fault = (Path(folder) / "round").read_text()
                kept = Path(tempfile.mkdtemp(prefix="tunewright-fault-")) / fault.split()[2]
                kept.write_bytes((Path(folder) / fault.split()[2]).read_bytes())
                print(f"exit code {child.exitcode} in seed, round, file: {fault}; kept as {kept}")
                return 1
            ends.update(results.get())
            seed += 1
    for end, count in sorted(ends.items()):
        print(f"{count:8,}  {end}")
    print(f"{sum(ends.values()):8,}  rounds in {time.monotonic() - start:.0f} s, next seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
