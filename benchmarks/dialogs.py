"""Long dialogs for work B: many turns behind one system prompt of about a hundred tokens, made of a seed.

    python benchmarks/dialogs.py dialogs.jsonl [--rows 200] [--turns 6 12] [--seed 0]

Each row is {"messages": […]}. The sentences mean little, but are English of common words, so they tokenise as people's
do: answers have three to eight sentences, questions one or two.
"""

import argparse
import json
import random
from pathlib import Path

SYSTEM = (
    "You are the night clerk of a small railway hotel at the edge of a harbour town. You know every timetable, every "
    "ferry and every guest who left an umbrella behind. You answer politely and completely, in whole sentences, and "
    "never in lists. Where a guest asks for a connection, you name the platform and the minutes that remain. Where you "
    "are not sure, you say so, and tell whom to ask in the morning. You do not speak of other guests, of prices that "
    "are not on the board, or of the weather at sea."
)
WHO = ("The early train", "The ferry", "The porter", "A guest", "The station master", "The last bus", "My colleague")
DOES = ("leaves from", "arrives at", "waits beside", "passes", "never stops at", "turns round before", "is known at")
WHERE = ("platform two", "the old pier", "the market square", "the lighthouse", "the mail office", "the north gate")
WHEN = ("at dawn", "a little before seven", "twice a week", "after the mail has come", "in winter", "when asked to")
WHY = (
    "because the bridge is being painted",
    "since nobody has told them otherwise",
    "as the board in the hall says",
    "although the timetable claims something else",
    "so there is time for a cup of tea",
)
ASKS = ("Could you tell me whether", "Is it true that", "I was told that", "Do you happen to know if", "I hope that")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=200, help="dialogs (%(default)s)")
    parser.add_argument("--turns", type=int, nargs=2, default=(6, 12), help="fewest and most answers of a dialog")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with options.file.open("w", encoding="utf-8") as file:
        for _ in range(options.rows):
            file.write(json.dumps({"messages": dialog(chance, chance.randint(*options.turns))}) + "\n")


def dialog(chance: random.Random, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": SYSTEM}]
    for _ in range(turns):
        asked = clause(chance)
        question = f"{chance.choice(ASKS)} {asked[0].lower()}{asked[1:]}?"
        answer = " ".join(f"{clause(chance)}, {chance.choice(WHY)}." for _ in range(chance.randint(3, 8)))
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def clause(chance: random.Random) -> str:
    return " ".join(chance.choice(words) for words in (WHO, DOES, WHERE, WHEN))


if __name__ == "__main__":
    main()
