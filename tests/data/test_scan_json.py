"""Any rows, however they are written and cut into pieces, come back the same, each with the line it begins on."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.scan_json import scan_rows
from tunewright.errors import UsageError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
rows_of_any_kind = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=4), max_size=6)
sizes = st.integers(1, 60)


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def scan(text: str, size: int = 7, keep: int = 0) -> list[tuple[dict[str, Any], int]]:
    return list(scan_rows(pieces(text, size), "rows.json", keep))


def complaint(text: str, size: int = 7) -> str:
    with pytest.raises(UsageError) as caught:
        scan(text, size)
    return str(caught.value)


@given(
    rows_of_any_kind, st.sampled_from([None, 0, 1, 4]), st.booleans(), st.sampled_from(["", "\n", " \r\n\n\t"]), sizes
)
def test_array_is_read_back_with_lines(
    rows: list[dict[str, Any]], indent: int | None, ascii_only: bool, before: str, size: int
) -> None:
    text = before + json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    found = scan(text, size)
    assert [row for row, _ in found] == rows
    line, expected = 1 + before.count("\n"), []
    if rows:
        for row in rows:  # an indented array puts each row on a new line, a compact one all rows on the first
            line += indent is not None
            expected.append(line)
            line += json.dumps(row, indent=indent, ensure_ascii=ascii_only).count("\n")
    assert [line for _, line in found] == expected


@given(rows_of_any_kind, st.sampled_from(["\n", "\r\n", "\n\n  \n"]), st.booleans(), sizes)
def test_lines_are_read_back_with_lines(rows: list[dict[str, Any]], end: str, last_end: bool, size: int) -> None:
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end * last_end
    expected = [1 + index * end.count("\n") for index in range(len(rows))]
    assert scan(text, size) == list(zip(rows, expected, strict=True))


@given(rows_of_any_kind, sizes)
def test_objects_may_span_lines_without_an_array(rows: list[dict[str, Any]], size: int) -> None:
    text = "\n".join(json.dumps(row, indent=2) for row in rows)
    assert [row for row, _ in scan(text, size)] == rows


@given(rows_of_any_kind, st.data(), st.sampled_from([None, 2]))
def test_faults_do_not_depend_on_how_the_text_is_cut(
    rows: list[dict[str, Any]], data: st.DataObject, indent: int | None
) -> None:
    text = json.dumps([{"q": "before" * 10}, *rows], indent=indent, ensure_ascii=False)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 3)))
    text = text[:start] + data.draw(st.text(alphabet='{}[],:"\\\n a1', max_size=3)) + text[end:]

    def outcome(size: int, keep: int) -> object:
        try:
            return scan(text, size, keep)
        except UsageError as fault:
            return str(fault)

    whole = outcome(1000, 1000)
    assert repr(outcome(1, 0)) == repr(whole)
    assert repr(outcome(11, 0)) == repr(whole)


@given(st.text(alphabet='{}[],:"\\\n\ra1.-eE+tu ', max_size=60), sizes)
def test_any_text_is_rows_or_a_usage_error(text: str, size: int) -> None:
    with contextlib.suppress(UsageError):
        assert all(isinstance(row, dict) for row, _ in scan(text, size))


def test_rows_longer_than_many_pieces_are_read_in_linear_time() -> None:
    rows = [{"text": "字" * 300_000}, {"text": "b" * 300_000}]
    taken = 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for piece in pieces(json.dumps(rows), 50):
            taken += 1
            yield piece

    found = scan_rows(counted(), "rows.json")
    assert next(found) == (rows[0], 1)
    assert taken * 50 < 2.2 * len(json.dumps(rows[0]))  # reads ahead, but not to the end of the file
    assert list(found) == [(rows[1], 1)]


def test_what_is_read_is_forgotten() -> None:
    """Rows stream: the second is not asked for before the first is out."""

    def endless() -> Iterator[str]:
        yield '[{"a": 1}'
        yield ', {"a": 2}'
        raise AssertionError("read too far")

    found = scan_rows(endless(), "rows.json")
    assert next(found) == ({"a": 1}, 1)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[\n  {"q": "hi" "a": "ho"}\n]',
            'line 2, column 13: malformed JSON, expected a comma or a closing bracket: {"q": "hi" <here> "a": "ho"}',
        ),
        (
            '{"q": "hi"\n{"q": "ho"}\n',
            'line 1, column 11: malformed JSON, expected a comma or a closing bracket: {"q": "hi" <here>',
        ),
        (
            '[{"q": "hi"},\n {"q": "ho",}]',
            'line 2, column 13: malformed JSON, expected no comma before the closing bracket: {"q": "ho", <here> }]',
        ),
        (
            '[{"q": "hi"},\n]',
            "line 2, column 1: malformed JSON, expected no comma before the closing bracket: <here> ]",
        ),
        (
            '[{"q": "hi"},',
            "line 1, column 14: malformed JSON, expected a row as an object { … }, but the file ends: "
            '[{"q": "hi"}, <here>',
        ),
        (
            '[{"q": "hi"}\n\n',
            "line 1, column 13: malformed JSON, expected a comma or the ] that ends the array, but the file ends: "
            '[{"q": "hi"} <here>',
        ),
        (
            '[{"q": "hi"}\n{"q": "ho"}]',
            "line 1, column 13: malformed JSON, expected a comma or the ] that ends the array: "
            '[{"q": "hi"} <here>',
        ),
        (
            '{"q": "hi"},\n{"q": "ho"}',
            "line 1, column 12: malformed JSON, expected the next row without a comma; rows with commas between them "
            'need [ and ] around them all: {"q": "hi"} <here> ,',
        ),
        (
            '{"q": "two\nlines"}',
            "line 1, column 11: malformed JSON, expected no raw line break, tab or control character inside a text; "
            'write \\n or \\t: {"q": "two <here>',
        ),
        (
            '{"q": "C:\\dir"}',
            "line 1, column 10: malformed JSON, expected a known escape after the backslash, such as "
            '\\n, \\" or \\\\: {"q": "C: <here> \\dir"}',
        ),
        (
            '{"q": "\\u12x4"}',
            'line 1, column 9: malformed JSON, expected four hexadecimal digits after \\u: {"q": "\\ <here> u12x4"}',
        ),
        (
            '{"q": "hi',
            "line 1, column 7: malformed JSON, expected a closing quote for the text that begins here: "
            '{"q": <here> "hi',
        ),
        (
            "{'q': 1}",
            "line 1, column 2: malformed JSON, expected a column name in double quotes: { <here> 'q': 1}",
        ),
        ('{"q" 1}', 'line 1, column 6: malformed JSON, expected a colon after the column name: {"q" <here> 1}'),
        ('{"q": None}', 'line 1, column 7: malformed JSON, expected a value: {"q": <here> None}'),
        ('["a", "b"]', 'line 1, column 2: malformed JSON, expected a row as an object { … }: [ <here> "a", "b"]'),
        ('{"q": 1}\n7', "line 2, column 1: malformed JSON, expected a row as an object { … }: <here> 7"),
        (
            'q,a\nhi,ho',
            "line 1, column 1: malformed JSON, expected [ or { at the beginning of a JSON file: <here> q,a",
        ),
        (
            '[] {"q": 1}',
            'line 1, column 4: malformed JSON, expected nothing after the ] that ends the array: [] <here> {"q": 1}',
        ),
        (
            '{"q": ' + "1" * 5000 + "}",
            "line 1, column 1: malformed JSON, expected no number as long as the one in this row; put it in quotes: "
            '<here> {"q": ' + "1" * 34,
        ),
        (
            "\n" + '{"q": ' + "[" * 100_000,
            "line 2, column 1: malformed JSON, expected a row that is not nested this deeply: "
            '<here> {"q": ' + "[" * 34,
        ),
    ],
)  # fmt: skip
def test_fault_is_named_with_line_column_and_excerpt(text: str, message: str, size: int) -> None:
    if len(text) > 1000:
        size = 1000
    assert complaint(text, size) == f"rows.json, {message}"
