"""Token ids that repeat themselves for ever: the one definition of a loop, for data and for generated answers."""

from collections.abc import Sequence

MAX_LOOP_PERIOD = 64  # longest block looked for, in tokens
MIN_LOOP_REPEATS = 3  # the block stands at least so often in a row
MIN_LOOP_TOKENS = 12  # and covers at least so many tokens: "!!!" or "ha ha ha" is style, not a loop


def loop_period(ids: Sequence[object]) -> int | None:
    """Period of the loop a reply (its tokens or its characters) ends in, or None.

    A reply loops when its tail is one block of 1 to 64 tokens, standing at least 3 times in a row and covering at
    least 12 tokens (so a block of one token needs 12 repeats, of two 6, of three 4, of four and more 3). A last
    block cut in the middle counts too: the tail is then a rotation of the block. The smallest period is returned.
    """
    ids = list(ids)
    for period in range(1, min(MAX_LOOP_PERIOD, len(ids) // MIN_LOOP_REPEATS) + 1):
        if ids[-1] != ids[-1 - period]:
            continue
        repeats = max(MIN_LOOP_REPEATS, -(-MIN_LOOP_TOKENS // period))
        tail = ids[-repeats * period :]
        if len(tail) == repeats * period and tail[period:] == tail[:-period]:
            return period
    return None
