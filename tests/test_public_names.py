from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import reliable_mq
from reliable_mq import ConfigurationError


def modules() -> list[str]:
    """All of the package; the contract suites are test modules."""
    return [
        module.name
        for module in pkgutil.walk_packages(reliable_mq.__path__, "reliable_mq.")
        if not module.name.startswith("reliable_mq.testing.contract")
    ]


def test_all_lists_what_there_is_in_order() -> None:
    """Every public name exists, and the list is sorted so that a diff shows what changed."""
    names = reliable_mq.__all__

    assert [name for name in names if not hasattr(reliable_mq, name)] == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", modules())
def test_each_module_says_what_it_is_for_and_what_it_gives(name: str) -> None:
    """A docstring, and an __all__ whose names exist."""
    module = importlib.import_module(name)

    assert module.__doc__
    assert [one for one in getattr(module, "__all__", ()) if not hasattr(module, one)] == []


@pytest.mark.parametrize("name", ["Outbox", "Auditor", "idempotent"])
def test_names_of_what_is_not_built_yet_exist_and_refuse(name: str) -> None:
    """Using one says what it waits for."""
    with pytest.raises(ConfigurationError, match=f"{name} is not built yet: it comes with"):
        getattr(reliable_mq, name)()


def test_importing_reads_no_environment_and_imports_no_client_library() -> None:
    """Only msgspec and the standard library come with the package."""
    program = (
        "import sys, reliable_mq\n"
        "bad = {'pika', 'confluent_kafka', 'grpc', 'redis', 'sqlalchemy', 'pydantic', 'sqlite3',"
        " 'tenacity', 'pytest'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
