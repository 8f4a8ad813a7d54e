"""Preference pairs for work D: a question after some talk, a better and a worse answer to it, made of a seed.

    python benchmarks/preferences.py pairs.jsonl [--rows 200] [--seed 0]

Each row is {"prompt": …, "chosen": …, "rejected": …}. The better answer replies to what was asked in three to twelve
sentences, the worse one speaks of something else in two to ten. No two rows share a prompt but by chance.
"""

import argparse
import json
import random
from pathlib import Path

from dialogs import ASKS, WHY, clause


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=200, help="pairs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_pairs(options.file, options.rows, options.seed)


def write_pairs(file: Path, rows: int, seed: int) -> None:
    chance = random.Random(seed)
    lines = [json.dumps(pair(chance)) + "\n" for _ in range(rows)]
    file.write_text("".join(lines), encoding="utf-8")


def pair(chance: random.Random) -> dict[str, str]:
    asked = clause(chance)
    question = f"{chance.choice(ASKS)} {asked[0].lower()}{asked[1:]}?"
    return {
        "prompt": f"{_speech(chance, 1, 8)} {question}",
        "chosen": f"{asked}, {chance.choice(WHY)}. {_speech(chance, 2, 11)}",
        "rejected": _speech(chance, 2, 10),
    }


def _speech(chance: random.Random, fewest: int, most: int) -> str:
    return " ".join(f"{clause(chance)}, {chance.choice(WHY)}." for _ in range(chance.randint(fewest, most)))


if __name__ == "__main__":
    main()
