"""Settings of all tests."""

from hypothesis import settings

# Times vary on a shared machine: a slow example is no mistake.
settings.register_profile("tunewright", deadline=None)
settings.load_profile("tunewright")
