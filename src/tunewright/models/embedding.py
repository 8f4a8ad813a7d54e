"""A few rows of a model's input embedding, read from its files without loading the model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"(?:^|\.)(?:embed_tokens|tok_embeddings|word_embeddings|embed_in|wte)\.weight$")


def embedding_rows(folder: Path, rows: Sequence[int]) -> "Tensor | None":
    """Rows of the embedding, float32 [rows, width]; None where the folder has no plain one with so many rows.

    Only these rows are read, however large the file is.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in filter(_NAME.search, file.keys()):
                    table = file.get_slice(name)
                    shape = table.get_shape()
                    if len(shape) == 2 and shape[0] > max(rows) and table.get_dtype() in ("F32", "F16", "BF16"):
                        return torch.cat([table[row : row + 1] for row in rows]).float()
        except (SafetensorError, OSError):
            return None  # a broken file is told where the model is loaded
    return None
