"""Amounts in words: the same in plans, progress, reports and tables."""


def duration(seconds: float) -> str:
    """`8 s`, `3 min 05 s` or `2 h 07 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def gib(amount: float) -> str:
    """Bytes as GiB with one decimal."""
    return f"{amount / 2**30:.1f} GiB"
