"""In which scripts questions and answers are written, and where an answer changes the script of its question.

Scripts are counted, languages are not guessed: French for English passes, English for Chinese is seen.
"""

from dataclasses import dataclass

import numpy as np

from tunewright.data.findings.characters import CLASSES, DENSE, FIRST_ODD, ODD, SCRIPTS
from tunewright.data.findings.found import Found, Tally, are, count_of, percent
from tunewright.data.findings.rows import Batch, Characters

_LETTERS = 12  # that a text must have before its script is judged
_AROUND = 60  # characters shown on each side of an odd one
_FEW = 0.2  # an answer with at most this share of its question's script has left it


@dataclass(frozen=True, slots=True)
class ScriptShares:
    """Texts by the script most of their letters are of, the most frequent first."""

    questions: dict[str, int]
    answers: dict[str, int]


class Scripts:
    def __init__(self) -> None:
        self._questions = np.zeros(len(SCRIPTS), np.int64)
        self._answers = [Tally() for _ in SCRIPTS]
        self._changed = Tally()
        self._both = 0

    def add(self, batch: Batch) -> None:
        questions, answers = letters(batch.questions), letters(batch.answers)
        asked, answered = questions.argmax(1), answers.argmax(1)
        enough_asked = questions.sum(1) >= _LETTERS
        enough_answered = answers.sum(1) >= _LETTERS
        self._questions += np.bincount(asked[questions.any(1)], minlength=len(SCRIPTS))
        for index in np.flatnonzero(answers.any(1)).tolist():
            self._answers[answered[index]].add(batch.rows[index].place)
        both = enough_asked & enough_answered
        kept = answers[np.arange(len(batch.rows)), asked] > _FEW * answers.sum(1)
        self._both += int(both.sum())
        for index in np.flatnonzero(both & (asked != answered) & ~kept).tolist():
            self._changed.add(batch.rows[index].place, batch.rows[index].text)

    def shares(self) -> ScriptShares:
        return ScriptShares(
            _ranked(dict(zip(SCRIPTS, self._questions.tolist(), strict=True))),
            _ranked({name: tally.count for name, tally in zip(SCRIPTS, self._answers, strict=True)}),
        )

    def result(self) -> list[Found]:
        changed = self._changed
        found = [self._written()]
        if changed.count:
            share = percent(changed.count, self._both)
            written = f"{are(changed.count)} written in another script than the question"
            message = f"{count_of(changed.count, 'answer')} ({share}) {written}"
            advice = "a model learns the language of its answers from such rows; look whether they are meant"
            found.append(
                Found("changed_script", "note", message, advice, changed.count, changed.first, changed.samples)
            )
        else:
            found.append(Found("changed_script", "fine", "answers keep the script of their questions"))
        return found

    def _written(self) -> Found:
        """How the answers are written; rare scripts are told with their places."""
        answers = self.shares().answers
        total = sum(answers.values())
        if not total:
            return Found("scripts", "fine", "no answer holds a letter")
        parts = [f"{percent(count, total)} {name}" for name, count in answers.items()]
        rarest = self._answers[SCRIPTS.index(list(answers)[-1])]
        first = rarest.first if len(answers) > 1 else ()
        return Found("scripts", "fine", f"answers are written in {', '.join(parts)}", count=total, first=first)


class OddCharacters:
    """Characters that no text should hold, by kind."""

    def __init__(self) -> None:
        self._rows = [Tally() for _ in ODD]
        self._times = np.zeros(len(ODD), np.int64)

    def add(self, batch: Batch) -> None:
        for texts in (batch.questions, batch.answers):
            odd = texts.classes >= FIRST_ODD
            if not odd.any():
                continue
            kinds, owners = texts.classes[odd] - FIRST_ODD, texts.owner[odd]
            self._times += np.bincount(kinds, minlength=len(ODD))
            for kind, owner in sorted({*zip(kinds.tolist(), owners.tolist(), strict=True)}):
                row = batch.rows[owner]
                self._rows[kind].add(row.place, excerpt(row.text, FIRST_ODD + kind))

    def result(self) -> list[Found]:
        found = [
            Found(
                "odd_characters",
                "note",
                f"{count_of(tally.count, 'text')} {'holds' if tally.count == 1 else 'hold'} {kind}; {times:,} in all",
                "they cost tokens and are learnt; clean the rows, or look how the file was decoded",
                tally.count,
                tally.first,
                tally.samples,
            )
            for kind, tally, times in zip(ODD, self._rows, self._times.tolist(), strict=True)
            if tally.count
        ]
        return found or [Found("odd_characters", "fine", "no control, broken or invisible characters")]


def letters(texts: Characters) -> np.ndarray:
    """Letters of each script in each text, int64 [texts, scripts]; a character that stands for a syllable or word
    counts three."""
    counts = np.bincount(texts.owner * CLASSES + texts.classes, minlength=texts.count * CLASSES)
    by_script = counts.reshape(texts.count, CLASSES)[:, 1 : len(SCRIPTS) + 1]
    weights = np.array([3 if name in DENSE else 1 for name in SCRIPTS])
    return np.asarray(by_script * weights)


def excerpt(text: str, kind: int) -> str:
    """The text around the first character of a class; odd ones are written as <U+200B>."""
    classes = Characters.of([text]).classes
    at = int(np.argmax(classes == kind))
    begin = max(0, at - _AROUND)
    around = zip(text[begin : at + _AROUND], classes[begin : at + _AROUND].tolist(), strict=True)
    shown = "".join(f"<U+{ord(one):04X}>" if index >= FIRST_ODD else one for one, index in around)
    return ("…" if begin else "") + shown + ("…" if at + _AROUND < len(text) else "")


def _ranked(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1]))
