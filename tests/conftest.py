"""Settings of all tests, and fixtures that modules ask for by `pytest.mark.usefixtures`."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# Times vary on a shared machine: a slow example is no mistake.
settings.register_profile("tunewright", deadline=None)
settings.load_profile("tunewright")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As processes with OMP_NUM_THREADS=1 have it: the number of threads may change the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def no_probe() -> Iterator[None]:
    """Measuring the machine takes a second on one core, and decides nothing in a test."""
    from tunewright.engine import plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "probe_rate", lambda dtype: 1e11)
        yield
