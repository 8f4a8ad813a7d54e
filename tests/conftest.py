"""Settings of all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tunewright.models.cache import cache_root

# Times vary on a shared machine: a slow example is no mistake.
settings.register_profile("tunewright", deadline=None)
settings.load_profile("tunewright")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave nothing in the user's cache, but use the models that are there."""
    own = tmp_path_factory.mktemp("cache")
    models = cache_root() / "models"
    if models.is_dir():
        (own / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TUNEWRIGHT_CACHE", str(own))
        yield
