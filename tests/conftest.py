"""Every test sees habitus with its annotations checked, and shares what is slow to make again."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# before anything imports habitus: modules that are imported already would stay unchecked
assert not any(name.partition(".")[0] == "habitus" for name in sys.modules), "habitus was imported before its hook."
install_import_hook("habitus", "typechecker.check")
found, here = Path(importlib.util.find_spec("habitus").origin), Path(__file__).parents[1]
assert found.is_relative_to(here), f"these tests are of {here}, but habitus is imported from {found}: install this one."

# most of the time goes into compiling programs that run for a moment
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

# compiled programs and standard data sets; outlives a test run, and its workers share it
os.environ.setdefault("HABITUS_CACHE", str(Path(tempfile.gettempdir()) / f"habitus-tests-{os.getuid()}"))


SLOW = tuple((Path(__file__).parent / "slow.txt").read_text().splitlines())


def pytest_collection_modifyitems(items):
    """Tests whose names begin as a line of slow.txt does are `slow`: `make test` leaves them out."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


MOST_GIB = 3  # that a worker may hold; the programs of hundreds of tests would take twice as much
PATIENCE = 25  # tests between two times that memory is why programs are forgotten, as not all of it comes back
since = 0


@pytest.fixture(autouse=True)
def _room():
    """Hundreds of tests compile in one worker."""
    global since
    yield
    runtime = sys.modules.get("habitus.train.runtime")  # where it is not imported, nothing was compiled
    since += 1
    if runtime is not None:
        full = since > PATIENCE and held_gib() > MOST_GIB
        since = 0 if full else since
        runtime.make_room(0.0 if full else 0.5)


def held_gib() -> float:
    """Memory of this process; 0 where it is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:
        return 0.0
