"""Files of every kind are read row by row with their places, and every fault of a file is one clear sentence."""

import contextlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.reading import complaint, read
from tunewright.config.schema import SourceConfig
from tunewright.data.examples import Place
from tunewright.data.read import read_rows
from tunewright.errors import UsageError

ROWS = [{"q": "你是谁？", "a": "我是莞嫔。"}, {"q": "hi", "a": "ho"}]
GBK_TEXT = '{"q": "hi", "a": "ho"}\n{"q": "你是谁？", "a": "——我是“莞嫔”。"}\n'


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_sheet(path: Path, *rows: list[Any], title: str = "Sheet1") -> Path:
    book = openpyxl.Workbook()
    page = book.active
    page.title = title
    for row in rows:
        page.append(row)
    book.save(path)
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "ROWS.JSON"])
@pytest.mark.parametrize("lines", [True, False])
def test_json_and_json_lines_are_read_whatever_the_ending(tmp_path: Path, name: str, lines: bool) -> None:
    texts = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = write(tmp_path / name, "\n".join(texts) if lines else "[\n" + ",\n".join(texts) + "]")
    first = 1 if lines else 2
    assert read(path) == [(ROWS[0], Place(name, first)), (ROWS[1], Place(name, first + 1))]


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-8-sig", "utf-8"),
        ("utf-16", None),
        ("utf-32", None),
        ("utf-16", "utf-16"),
        ("utf-16-be", "utf-16-be"),
        ("gb18030", "gb18030"),
        ("gb18030", "GBK"),
        ("big5", "big5"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, declared: str | None) -> None:
    row = {"q": "你是誰", "a": "我是甄嬛" if "b" not in encoding else "我是"}
    path = write(tmp_path / "rows.json", json.dumps([row], ensure_ascii=False).encode(encoding))
    assert read(path, encoding=declared) == [(row, Place("rows.json", 1))]


CHINESE = "保持健康的三个提示是均衡饮食、经常运动和充足的睡眠。人工智能是计算机科学的一个分支，它研究智能的实质。" * 2
FOREIGN = {
    "euc-kr": "건강을 유지하려면 규칙적으로 운동하고 충분히 자야 합니다 인공지능은 컴퓨터 과학의 한 분야입니다" * 3,
    "euc-jp": "健康を維持するためには運動と睡眠が大切です人工知能は計算機科学の一分野であり研究されています" * 3,
    "big5": "保持健康的三個提示是均衡飲食經常運動和充足的睡眠人工智慧是電腦科學的一個分支它研究智慧的本質" * 3,
    "cp1251": "Искусственный интеллект изучает природу разума, а сон и спорт полезны для здоровья. " * 3,
    "latin-1": "L'été dernier, nous avons mangé des crêpes à la crème près du château, déjà très âgé. " * 9,
}


def said(path: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[str]]:
    notices: list[str] = []
    rows = [row for row, _ in read_rows(SourceConfig(path=path.name, **settings), path.parent, notify=notices.append)]
    return rows, notices


@pytest.mark.parametrize("plain", [0, 3_000_000])
@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "gb18030"])
def test_chinese_in_gb18030_is_recognised_and_said(tmp_path: Path, encoding: str, plain: int) -> None:
    """Also where it begins after megabytes of plain ASCII, and where its first characters pass for UTF-8."""
    text = "x" * plain + "\n联通" + CHINESE + "\n"
    path = write(tmp_path / "rows.txt", text.encode(encoding))
    rows, notices = said(path)
    assert [row["text"] for row in rows] == text.split()
    assert notices == [
        "rows.txt is not UTF-8 but Chinese text in GB18030 (GBK), and is read as that; "
        "data.train.encoding: gb18030 says so without a notice"
    ]
    assert said(path, encoding="gb18030") == (rows, [])


@pytest.mark.parametrize("encoding", FOREIGN)
def test_no_other_encoding_is_taken_for_chinese(tmp_path: Path, encoding: str) -> None:
    message = complaint(write(tmp_path / "rows.txt", FOREIGN[encoding].encode(encoding)))
    assert " is not utf-8" in message


def test_utf8_with_one_bad_byte_is_no_chinese(tmp_path: Path) -> None:
    for content in (CHINESE.encode() + b"\xff", (CHINESE * 9_000).encode() + CHINESE.encode("gbk")):
        assert " is not utf-8: save the file as UTF-8" in complaint(write(tmp_path / "rows.txt", content))


def test_markdown_is_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "page.md", "# 题\n\ntext\n")
    assert read(path) == [({"text": "# 题\n\ntext\n"}, Place("page.md", 1))]


def test_text_file_has_a_row_for_each_written_line(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki.txt", "one\r\n\n   \ntwo\u2028still two\nthree")
    assert read(path) == [
        ({"text": "one"}, Place("wiki.txt", 1)),
        ({"text": "two\u2028still two"}, Place("wiki.txt", 4)),
        ({"text": "three"}, Place("wiki.txt", 5)),
    ]


def test_sheet_becomes_text_with_row_numbers(tmp_path: Path) -> None:
    import datetime

    path = write_sheet(
        tmp_path / "q.xlsx",
        [],
        [" q ", "a", None, "when"],
        ["你好", 3.0, None, datetime.datetime(2024, 5, 1)],
        [],
        [None, "  ", None],
        [1.5, True, "beyond", datetime.datetime(2024, 5, 1, 10, 30)],
        ["only", None],
        ["fault", "#N/A"],
        [],
    )
    assert read(path) == [
        ({"q": "你好", "a": "3", "when": "2024-05-01"}, Place("q.xlsx", 3)),
        ({"q": "1.5", "a": "TRUE", "when": "2024-05-01 10:30:00", "(column C)": "beyond"}, Place("q.xlsx", 6)),
        ({"q": "only", "a": None, "when": None}, Place("q.xlsx", 7)),
        ({"q": "fault", "a": None, "when": None}, Place("q.xlsx", 8)),
    ]


def test_named_sheet_and_max_samples(tmp_path: Path) -> None:
    path = write_sheet(tmp_path / "q.xlsx", ["q", "a"], ["first", "sheet"])
    book = openpyxl.load_workbook(path)
    page = book.create_sheet("更多")
    for row in (["q", "a"], [1, 2], [3, 4], [5, 6]):
        page.append(row)
    book.save(path)
    assert [row for row, _ in read(path, sheet="更多", max_samples=2)] == [{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]
    assert [row for row, _ in read(path)] == [{"q": "first", "a": "sheet"}]


def test_home_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "rows.json", json.dumps(ROWS))
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/rows.json", str(tmp_path / "rows.json")):
        assert len(list(read_rows(SourceConfig(path=path), Path("elsewhere")))) == 2


def test_rows_are_streamed(tmp_path: Path) -> None:
    """The fault at the end of a long file is met only when reading gets there."""
    path = write(tmp_path / "rows.jsonl", '{"q": "hi", "a": "ho"}\n' * 200_000 + "{broken")
    rows = read_rows(SourceConfig(path=path.name), tmp_path)
    assert next(rows)[1] == Place("rows.jsonl", 1)
    with pytest.raises(UsageError, match="rows.jsonl, line 200001, column 2: malformed JSON"):
        list(rows)


ENDINGS = (
    "use one of .json, .jsonl, .ndjson, .csv, .tsv, .xlsx, .xlsm, .parquet, .arrow, .feather, .txt, .md, "
    "text files also as .gz or .zst"
)

BAD_FILES: list[tuple[str, bytes | str | None, dict[str, Any], str]] = [
    # name, content (None for no file), settings, message
    ("rows.json", "", {}, "rows.json is empty"),
    ("rows.json", " \n", {}, "rows.json holds no rows"),
    ("rows.json", "[]", {}, "rows.json holds no rows"),
    ("rows.txt", "\n\n", {}, "rows.txt holds no rows"),
    ("rows.json", b"\xef\xbb\xbf", {}, "rows.json holds no rows"),
    ("rows.docx", "x", {}, f"rows.docx can't be read, as files ending in .docx are not known; {ENDINGS}"),
    ("rows.docx.gz", "x", {}, f"rows.docx.gz can't be read, as files ending in .docx are not known; {ENDINGS}"),
    ("rows", "[]", {}, f"rows can't be read, as files without an ending are not known; {ENDINGS}"),
    (
        "rows.parquet.gz", "", {},
        "rows.parquet.gz is compressed twice, .parquet files hold compressed data themselves: unpack it",
    ),
    ("rows.xls", b"\xd0\xcf\x11\xe0", {}, "rows.xls is in the old Excel format: save it as .xlsx"),
    (
        "rows.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1", {},
        "rows.xlsx is locked by a password or an old .xls file: save it as .xlsx without a password",
    ),
    (
        "rows.xlsx", b"no workbook", {},
        "rows.xlsx is not a readable Excel workbook (File is not a zip file): "
        "open it in Excel and save it again as .xlsx",
    ),
    (
        "rows.xlsx", "", {},
        "rows.xlsx is not a readable Excel workbook (File is not a zip file): "
        "open it in Excel and save it again as .xlsx",
    ),
    ("rows.json", "[]", {"sheet": "A"}, "data.train.sheet is for Excel files, which rows.json is not: remove that key"),
    (
        "rows.xlsx", "", {"encoding": "gbk"},
        "data.train.encoding is for text files, but rows.xlsx is an Excel file: remove that key",
    ),
    (
        "rows.json", GBK_TEXT.encode("gb18030"), {},
        "rows.json, line 2, column 8: byte 0xc4 is not utf-8. "
        "This looks like GBK: set data.train.encoding: gb18030",
    ),
    (
        "rows.txt", "Un café\n à la crème".encode("latin-1"), {},
        "rows.txt, line 1, column 7: byte 0xe9 is not utf-8: "
        "save the file as UTF-8, or name its encoding in data.train.encoding",
    ),
    (
        "rows.json", b'\xef\xbb\xbf{"q": "\xff"}', {},
        "rows.json, line 1, column 8: byte 0xff is not utf-8: "
        "save the file as UTF-8, or name its encoding in data.train.encoding",
    ),
    (
        "rows.json", b'[\n{"q": "\xff"}]', {"encoding": "gb18030"},
        "rows.json, line 2, column 8: byte 0xff is not gb18030, which data.train.encoding names: "
        "set the encoding that the file was saved with",
    ),
    (
        "rows.json", '{"q": "é"}'.encode(), {"encoding": "ascii"},
        "rows.json, line 1, column 8: byte 0xc3 is not ascii, which data.train.encoding names: "
        "set the encoding that the file was saved with",
    ),
    (
        "rows.json", "{}".encode("utf-16-le"), {},
        "rows.json looks like UTF-16 without a byte-order mark: set data.train.encoding: utf-16-le",
    ),
    (
        "rows.json", '{"q": "hi"}'.encode("utf-16")[:-1], {},
        "rows.json, line 1, column 11: byte 0x7d is not utf-16: "
        "save the file as UTF-8, or name its encoding in data.train.encoding",
    ),
    (
        "rows.json", b"\xef\xbb\xbf[]", {"encoding": "gbk"},
        "rows.json begins with the byte-order mark of utf-8, but data.train.encoding says gbk: remove that key",
    ),
    *(
        (
            "rows.json", "[]", {"encoding": name},
            f"data.train.encoding: {name!r} is no text encoding known here; "
            "common ones are utf-8, gb18030, big5, utf-16",
        )
        for name in ("utf8mb4", "base64", "\0")
    ),
    ("huanhaun.json", None, {}, "data.train: huanhaun.json does not exist in {folder}; did you mean 'huanhuan.json'?"),
    ("HUANHUAN", None, {}, "data.train: HUANHUAN does not exist in {folder}; did you mean 'huanhuan.json'?"),
    ("zzz.json", None, {}, "data.train: zzz.json does not exist in {folder}"),
    ("nul\0.json", None, {}, "data.train: nul\0.json does not exist in {folder}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "settings", "message"), BAD_FILES)
def test_bad_file(
    tmp_path: Path, name: str, content: bytes | str | None, settings: dict[str, Any], message: str
) -> None:
    write(tmp_path / "huanhuan.json", "[]")
    if content is not None:
        write(tmp_path / name, content)
    assert complaint(tmp_path / name, **settings) == message.format(folder=tmp_path.resolve())


def test_missing_folder_and_long_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        list(read_rows(SourceConfig(path="gone/rows.json"), tmp_path, "data.validation"))
    folder = tmp_path / "gone"
    assert str(caught.value) == (
        f"data.validation: gone/rows.json does not exist, nor does the folder {folder}; "
        "for a data set on a hub add data.validation.source: huggingface (or modelscope)"
    )
    assert complaint(tmp_path / ("x" * 300)) == f"data.train: {'x' * 300} can't be read: File name too long"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([["q", "a"]], {}, "q.xlsx holds no rows"),
        ([], {}, "q.xlsx holds no rows"),
        (
            [["q", "a"], ["hi", "ho"]],
            {"sheet": "sheet 1"},
            "data.train.sheet: q.xlsx has no sheet 'sheet 1', it has Sheet1; did you mean 'Sheet1'?",
        ),
        (
            [["q", "a", "q"], ["hi", "ho", "hum"]],
            {},
            "q.xlsx, row 1: columns A and C are both named 'q': rename one of them",
        ),
    ],
)
def test_bad_sheet(tmp_path: Path, rows: list[list[Any]], settings: dict[str, Any], message: str) -> None:
    assert complaint(write_sheet(tmp_path / "q.xlsx", *rows), **settings) == message


def only_usage_errors(path: Path, **settings: Any) -> None:
    with contextlib.suppress(UsageError):
        for row, place in read(path, **settings):
            assert isinstance(row, dict)
            assert place.line >= 1


fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@fuzzed
@given(
    st.binary(max_size=200),
    st.sampled_from(["rows.json", "rows.jsonl", "rows.txt"]),
    st.sampled_from([None, "utf-8", "gb18030", "utf-16", "utf-7", "idna", "undefined", "shift_jis", "cp1252"]),
)
def test_random_bytes_only_raise_usage_errors(tmp_path: Path, content: bytes, name: str, encoding: str | None) -> None:
    only_usage_errors(write(tmp_path / name, content), encoding=encoding)


@fuzzed
@given(st.binary(max_size=200))
def test_random_workbooks_only_raise_usage_errors(tmp_path: Path, content: bytes) -> None:
    only_usage_errors(write(tmp_path / "q.xlsx", content))


@fuzzed
@given(st.data())
def test_damaged_workbooks_only_raise_usage_errors(tmp_path: Path, workbook: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(workbook)))
    damage = data.draw(st.binary(min_size=1, max_size=8))
    with warnings.catch_warnings():  # zipfile's, about a name that the damage made appear twice
        warnings.simplefilter("ignore")
        only_usage_errors(write(tmp_path / "q.xlsx", workbook[:start] + damage + workbook[start + len(damage) :]))


@fuzzed
@given(st.data())
def test_damaged_parts_of_a_workbook_only_raise_usage_errors(
    tmp_path: Path, workbook: bytes, data: st.DataObject
) -> None:
    """Damage inside the compressed XML, where a checksum would hide it."""
    import io
    import zipfile

    source = zipfile.ZipFile(io.BytesIO(workbook))
    part = data.draw(st.sampled_from(source.namelist()))
    content = source.read(part)
    start = data.draw(st.integers(0, len(content)))
    cut = data.draw(st.integers(0, 30))
    damage = data.draw(st.binary(max_size=4) | st.sampled_from([b"999999999", b'"', b"<c>", b"-1", b"ZZZZ"]))
    with zipfile.ZipFile(tmp_path / "q.xlsx", "w") as target:
        for name in source.namelist():
            damaged = content[:start] + damage + content[start + cut :]
            target.writestr(name, damaged if name == part else source.read(name))
    only_usage_errors(tmp_path / "q.xlsx")


@pytest.fixture(scope="module")
def workbook(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("workbook") / "q.xlsx"
    return write_sheet(path, ["q", "a"], ["hi", 1.5], ["ho", True], ["你好", None]).read_bytes()


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
@fuzzed
def test_every_encoding_gives_the_same_rows(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    rows = [{"q": question, "a": answer} for question, answer in pairs]
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    ways: list[tuple[str, str | None]] = [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("gb18030", "gb18030"),
    ]
    for encoding, declared in ways:
        found = read(write(tmp_path / "rows.json", text.encode(encoding)), encoding=declared)
        assert found == [(row, Place("rows.json", 2 + 4 * index)) for index, row in enumerate(rows)]


def test_bad_byte_is_found_beyond_the_first_megabyte(tmp_path: Path) -> None:
    content = '{"q": "字"}\n'.encode() * 200_000 + b'{"q": "\xc4\xe3"}'
    path = write(tmp_path / "rows.jsonl", content)
    assert complaint(path).startswith("rows.jsonl, line 200001, column 8: byte 0xc4 is not utf-8: save the file")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Callable[..., Any]:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "rows.json", "[]")
    monkeypatch.setattr(Path, "open", refuse)  # a mode bit would not stop a test that runs as root
    assert complaint(path) == "rows.json can't be read: Permission denied"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"q": "hi", "a": "ho", "\\ud800": 1}]', 1),
        ('{"q": "hi", "a": "ho"}\n{"q": "hi", "a": "ho", "bad \\udfff": ""}\n', 2),
    ],
)
def test_half_of_a_character_in_a_column_name_is_refused(tmp_path: Path, content: str, line: int) -> None:
    said = complaint(write(tmp_path / "rows.json", content))
    name = "\\ud800" if line == 1 else "bad \\udfff"
    fault = f"the column name '{name}' holds half of a character (a lone surrogate)"
    assert said == f"rows.json:{line}: {fault}: rename that column"
    said.encode()
