"""What tunewright raises for people: every message says what, where, why and the fix.

The command line prints the message alone, without a traceback, and exits with `exit_code`.
Any other exception is a bug and keeps its traceback.
"""


class TunewrightError(Exception):
    """Base of all errors meant to be read by a user."""

    exit_code = 1


class UsageError(TunewrightError):
    """Wrong config, data or usage, or a model that cannot be used: something the user can put right."""

    exit_code = 2


class RunError(TunewrightError):
    """Something failed while working: a non-finite loss, a full disk, a broken checkpoint."""

    exit_code = 1


class Interrupted(TunewrightError):
    """Ctrl-C or SIGTERM: a checkpoint was written and `resume` goes on from it."""

    exit_code = 130
