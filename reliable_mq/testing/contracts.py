"""The transport contract: what every adapter has to pass, ours and those of others.

    from reliable_mq.testing.contracts import TransportContract
    from reliable_mq.testing.harness import Harness

    class MyHarness(Harness): ...

    class TestMyBroker(TransportContract):
        @pytest.fixture
        def harness(self):
            harness = MyHarness(...)
            yield harness
            harness.close()

Each test is a sentence of `reliable_mq.adapters.base`. Capabilities and faults of the harness
select them; what is skipped says which of the two is missing. No test sleeps to wait for a state.
"""

# ruff: noqa: E402 - pytest has to know the modules whose asserts it explains before they are loaded
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite(
    "reliable_mq.testing.harness",
    "reliable_mq.testing.rig",
    "reliable_mq.testing.contract_consume",
    "reliable_mq.testing.contract_content",
    "reliable_mq.testing.contract_members",
    "reliable_mq.testing.contract_publish",
    "reliable_mq.testing.contract_routes",
)

from reliable_mq.testing.contract_consume import ConsumeContract
from reliable_mq.testing.contract_content import ContentContract
from reliable_mq.testing.contract_members import MembersContract
from reliable_mq.testing.contract_publish import PublishContract
from reliable_mq.testing.contract_routes import RoutesContract
from reliable_mq.testing.harness import FAULTS, Harness, victim
from reliable_mq.testing.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FAULTS", "Harness", "TransportContract", "victim"]


class TransportContract(
    PublishContract, ConsumeContract, MembersContract, ContentContract, RoutesContract
):
    """All of it. A subclass provides the fixture `harness`, a new Harness for each test."""

    @pytest.fixture
    def rig(self, harness: Harness) -> Iterator[Rig]:
        """The clients of one test, closed at its end."""
        rig = Rig(harness)
        yield rig
        rig.close()
