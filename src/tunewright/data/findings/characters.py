"""What characters the texts are made of: scripts of questions and answers, and characters no text should hold."""

from functools import lru_cache

import numpy as np

# (name, first, last): characters of a script that are letters. A reader of Japanese meets Han and kana in one text.
SCRIPTS = ("Latin", "Han and kana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "other")
# A character of these says about as much as three letters of an alphabet.
DENSE = ("Han and kana", "Hangul")
ODD = (
    "control characters",
    "replacement characters (�), left by a wrong decoding",
    "invisible characters of no width",
    "marks that turn the direction of writing",
    "characters for private use, which mean nothing outside one font",
)
DIGIT = len(SCRIPTS) + 1  # classes: 0 nothing, then scripts, digits, odd ones
FIRST_ODD = DIGIT + 1
CLASSES = FIRST_ODD + len(ODD)

_SCRIPT_RANGES = {
    "Latin": [
        (0x41, 0x5A),
        (0x61, 0x7A),
        (0xAA, 0xAA),
        (0xBA, 0xBA),
        (0xC0, 0x24F),
        (0x1E00, 0x1EFF),
        (0xFF21, 0xFF5A),
    ],
    "Han and kana": [
        (0x3005, 0x3007),
        (0x3040, 0x30FF),
        (0x31F0, 0x31FF),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0xFF66, 0xFF9D),
    ],
    "Hangul": [(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)],
    "Cyrillic": [(0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)],
    "Greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "Arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)],
    "Hebrew": [(0x590, 0x5FF), (0xFB1D, 0xFB4F)],
    "Devanagari": [(0x900, 0x97F)],
    "Thai": [(0xE00, 0xE7F)],
}
# Zero-width joiners and variation selectors are no mistake: emoji and several scripts are written with them.
_ODD_RANGES = [
    [(0x00, 0x08), (0x0B, 0x0C), (0x0E, 0x1F), (0x7F, 0x9F), (0xFFFE, 0xFFFF)],
    [(0xFFFD, 0xFFFD)],
    [(0x200B, 0x200B), (0x2060, 0x2060), (0xFEFF, 0xFEFF)],
    [(0x202A, 0x202E), (0x2066, 0x2069)],
    [(0xE000, 0xF8FF)],
]
_IDEOGRAPHS_BEYOND = (0x20000, 0x3FFFF)


def classes_of(codes: np.ndarray) -> np.ndarray:
    """The class of each code point, uint8."""
    table = _table()
    classes: np.ndarray = table[np.minimum(codes, len(table) - 1)]
    beyond = codes >= len(table)
    if beyond.any():
        first, last = _IDEOGRAPHS_BEYOND
        ideographs = (codes >= first) & (codes <= last)
        classes[beyond] = np.where(ideographs[beyond], SCRIPTS.index("Han and kana") + 1, 0)
    return classes


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """The class of every character of the basic plane, and one more entry for what lies beyond."""
    letters = np.array([chr(code).isalpha() for code in range(0x10000)])
    table = np.zeros(0x10001, np.uint8)
    table[:-1][letters] = SCRIPTS.index("other") + 1
    for script, ranges in _SCRIPT_RANGES.items():
        for first, last in ranges:
            table[first : last + 1][letters[first : last + 1]] = SCRIPTS.index(script) + 1
    table[:-1][[chr(code).isdigit() for code in range(0x10000)]] = DIGIT
    for index, ranges in enumerate(_ODD_RANGES):
        for first, last in ranges:
            table[first : last + 1] = FIRST_ODD + index
    return table
