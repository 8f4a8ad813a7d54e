"""Forests read by walking up their segments, as the tests do."""

import numpy as np

from tunewright.forest.build import Forest


def path_rows(forest: Forest, segment: int) -> np.ndarray:
    """Rows of all tokens from the root to the end of `segment`, in order; the visible keys of its last token."""
    path: list[np.ndarray] = []
    while segment >= 0:
        path.append(forest.start[segment] + np.arange(forest.length[segment]))
        segment = int(forest.parent[segment])
    return np.concatenate(path[::-1])
