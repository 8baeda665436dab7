"""What the tests of faults share."""

import pytest

from integration.faults import LONG, Run


def pytest_collection_modifyitems(items):
    """The long forms take longer than any other test may."""
    for item in items:
        if LONG:
            item.add_marker(pytest.mark.timeout(1_800))


@pytest.fixture
def run(tmp_path):
    """A folder for the processes of one test; none of them outlives it."""
    run = Run(tmp_path)
    yield run
    run.end()
