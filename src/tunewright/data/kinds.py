"""What kind of file a name stands for, by its ending: `rows.jsonl.gz` holds JSON and is compressed."""

from pathlib import PurePath
from typing import Literal

Kind = Literal["json", "csv", "excel", "parquet", "arrow", "text", "document"]

ENDINGS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "document",
}
COMPRESSED = (".gz", ".zst")
TEXT_KINDS: tuple[Kind, ...] = ("json", "csv", "text", "document")  # the others have their own compression
CALLED: dict[Kind, str] = {
    "json": "a JSON file",
    "csv": "a CSV file",
    "excel": "an Excel file",
    "parquet": "a Parquet file",
    "arrow": "an Arrow file",
    "text": "a text file",
    "document": "a Markdown file",
}
KNOWN = ", ".join(ENDINGS)


def ending_of(name: str) -> str:
    """The ending that names the kind, in lower case, without `.gz` or `.zst`; "" for none."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def compression_of(name: str) -> str | None:
    """`.gz`, `.zst` or None."""
    ending = PurePath(name.lower()).suffix
    return ending if ending in COMPRESSED else None


def kind_of(name: str) -> Kind | None:
    """The kind of a data file that can be read, None for everything else."""
    kind = ENDINGS.get(ending_of(name))
    return kind if compression_of(name) is None or kind in TEXT_KINDS else None


def why_not(name: str) -> str:
    """Why a file of this name can't be read, as the end of a sentence that begins with its name."""
    ending, packed = ending_of(name), compression_of(name)
    if ending == ".xls":
        return "is in the old Excel format: save it as .xlsx"
    if packed and ending in ENDINGS:
        return f"is compressed twice, {ending} files hold compressed data themselves: unpack it"
    kind = f"files ending in {ending}" if ending else "files without an ending"
    return f"can't be read, as {kind} are not known; use one of {KNOWN}, text files also as .gz or .zst"
