"""The documents say what is so: their snippets run, their tables and links name what exists.

In a page, the fence ```python is a program of its own. It is run in an empty directory, and what it
prints is compared with the fence ```text output that follows it. ```python no-run is only compiled.
Test functions in it are run, with their fixtures. `input()` waits until every consumer has nothing
left to do, or stands at a halted key.
"""

from __future__ import annotations

import inspect
import re
import time
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from reliable_mq import Context, Limits, ReliableMQ
from reliable_mq.adapters.kafka.config import Options as KafkaOptions
from reliable_mq.adapters.rabbitmq.parameters import FILES, NUMBERS, OTHERS, Options
from reliable_mq.app import Health
from reliable_mq.deadletter import REASONS
from reliable_mq.events import Event
from reliable_mq.routes import NOT_BUILT, Routes
from reliable_mq.settings import COMING, OPTIONS
from reliable_mq.testing.inmemory import InMemory
from reliable_mq.watch import ConsumerHealth, State

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    """The text of a page."""
    return (ROOT / name).read_text()


class Snippet(NamedTuple):
    """A fence, and the output fence that follows it."""

    path: Path
    line: int
    code: str
    output: str | None
    runs: bool

    def __str__(self):
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def snippets() -> list[Snippet]:
    """All python fences."""
    found = []
    for path in PAGES:
        text = path.read_text()
        fences = list(FENCE.finditer(text))
        for fence, following in zip_longest(fences, fences[1:]):
            language, info, code = fence.groups()
            if language != "python":
                continue
            assert info in (None, "no-run"), f"{path.name}: what is ```python {info}?"
            line = text.count("\n", 0, fence.start()) + 1
            output = None
            if following is not None and following.group(1, 2) == ("text", "output"):
                output = following[3]
            found.append(Snippet(path, line, code, output, info is None))
    return found


def wait_until_idle(apps: list[ReliableMQ]) -> None:
    """Until each group has nothing left, or what is left stands behind a halted key."""
    deadline = time.monotonic() + 20
    for mq in apps:
        for topic, group in {
            (topic, one.options.group) for one in mq.declared for topic in one.options.topics
        }:
            transport = mq._runtime.transport
            while transport.lag(topic, group) and not list(mq.halted(topic, group)):
                assert time.monotonic() < deadline, f"{topic} of {group} is not finished"
                time.sleep(0.005)


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_a_snippet_does_what_it_says(snippet, tmp_path, monkeypatch, capsys, request):
    """It runs as it stands, and prints what the page says."""
    program = compile("\n" * snippet.line + snippet.code, snippet.path, "exec", dont_inherit=True)
    if not snippet.runs:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RELIABLE_MQ_URL", raising=False)
    names = {"__name__": "snippet"}

    def apps() -> list[ReliableMQ]:
        return [one for one in names.values() if isinstance(one, ReliableMQ)]

    names["input"] = lambda *_: wait_until_idle(apps())
    try:
        exec(program, names)  # noqa: S102 - our own documents
        for name, test in list(names.items()):
            if name.startswith("test_"):
                parameters = inspect.signature(test).parameters
                test(**{one: request.getfixturevalue(one) for one in parameters})
    finally:
        for mq in apps():
            mq.stop(0.5)
    if snippet.output is not None:
        assert snippet.output.strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Each relative link names a file, and its anchor a heading there."""
    for target in re.findall(r"\]\(([^)#:\s]*(?:#[^)\s]*)?)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{path.name} links to {target}"


@lru_cache
def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are made where it is shown."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_tests_exist(path):
    """A page that says which test tries to break a promise names one that there is."""
    for name in re.findall(
        r"`((?:tests|integration|reliable_mq)/[\w/]+\.py[\w:]*)`", path.read_text()
    ):
        file, _, test = name.partition("::")
        assert (ROOT / file).is_file(), f"{path.name} names {name}"
        if test:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{path.name} names {name}"


def test_every_option_of_a_consumer_is_documented():
    """With its default, where that is a plain value."""
    text = page("docs/consuming.md")
    for name, default in (Routes.consumer.__kwdefaults__ or {}).items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert row, f"{name} has no row"
        if isinstance(default, int) and name not in ("retry", "on_failure"):
            assert row[1] == str(default), name


def test_what_is_not_built_is_named_and_refused():
    """The README lists each name that is reserved; `hmac` has none yet."""
    text = page("README.md")
    for name in set(NOT_BUILT) - {"hmac", "park", "audit"}:
        assert f"`{name}=" in text, name
    assert 'on_failure="park"' in text
    assert "audit=True" in text
    for scheme in set(COMING) - {"rocketmq-legacy"}:
        assert f"`{scheme}://…` | not built yet" in text


def test_every_option_of_the_embedded_broker_is_documented():
    """All that a URL takes."""
    text = page("docs/sqlite.md")
    for name in OPTIONS:
        assert f"| `{name}` |" in text


def test_every_option_of_rabbitmq_is_documented():
    """All that its URL takes, with the defaults."""
    text = page("docs/rabbitmq.md")
    defaults = Options()
    for name in NUMBERS:
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert row, f"{name} has no row"
        assert float(row[1]) == getattr(defaults, name), name
    for name in (*FILES, *OTHERS):
        assert f"`{name}`" in text


def test_every_option_of_kafka_is_documented():
    """All that its URL takes beside librdkafka's own, with the defaults."""
    text = page("docs/kafka.md")
    defaults = KafkaOptions()
    for name in KafkaOptions.__struct_fields__:
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert row, f"{name} has no row"
        assert type(getattr(defaults, name))(row[1]) == getattr(defaults, name), name


def test_every_event_and_health_field_is_documented():
    """Who watches a process finds all of it on one page."""
    text = page("docs/operations.md")
    fields = {*Health.__struct_fields__, *ConsumerHealth.__struct_fields__}
    for name in fields - {"name", "topics", "group"}:
        assert re.search(rf"`(?:consumers\[…\]\.)?{name}`", text), name
    for state in get_args(State):
        assert f"`{state}`" in text, state
    for event in Event.__args__:
        assert f"`{event.__name__}`" in text, event


def test_every_reason_that_can_occur_is_documented():
    """The others wait for what is not built."""
    text = page("docs/consuming.md")
    later = {"expired", "key-parked", "crash-suspect", "fingerprint-mismatch", "weak-id"}
    for reason in REASONS - later - {"unroutable"}:
        assert f"| `{reason}` |" in text, reason


def test_what_a_handler_and_a_test_hold_is_documented():
    """All public attributes of the Context and of the app in memory."""
    consuming, testing = page("docs/consuming.md"), page("docs/testing.md")
    for name in dir(Context):
        if not name.startswith("_") and name not in ("end", "outputs"):
            assert re.search(rf"`{name}[`(]", consuming), name
    for name in dir(InMemory):
        if not name.startswith("_"):
            assert f"t.{name}" in testing, name
    for name in Limits.__struct_fields__:
        assert f"`Limits({name}=)`" in consuming + page("docs/publishing.md"), name


def test_the_readme_is_short():
    """Who looks whether this is for them reads one page."""
    assert page("README.md").count("\n") <= 200
