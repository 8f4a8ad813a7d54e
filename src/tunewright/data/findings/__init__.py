"""What `tunewright check` finds in the data: each module looks at one thing, in one pass and bounded memory.

A finding takes batches of rows with `add` and says what it saw with `result`; `look` in `find.py` runs them all.
"""
