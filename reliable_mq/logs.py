"""Logging: what is being handled, on every record that wants it.

The package logs to `logging.getLogger("reliable_mq.…")`, which has a NullHandler, and leaves levels
and handlers to the application:

    handler = logging.StreamHandler()
    handler.addFilter(MessageFilter())
    handler.setFormatter(logging.Formatter("%(levelname)s %(topic)s %(message_id)s %(message)s"))
"""

from __future__ import annotations

import logging

from reliable_mq.context import current

__all__ = ["MessageFilter"]

logging.getLogger("reliable_mq").addHandler(logging.NullHandler())

#: Characters of an id, a name or a key that go into a log.
SHOWN = 200


class MessageFilter(logging.Filter):
    """Adds message_id, topic, group, key and attempt to records; lets every record pass.

    Inside a handler they tell of the message in hand; elsewhere they are "-", and attempt is 0.
    What a record has already (by `extra=`, or from this filter on another handler) stays. The texts
    are printable and cut, so no id or key can forge a line of the log. Keys may be personal data.

    Any thread. Put it on a handler: filters of a logger do not see records of its children. Where a
    QueueHandler moves records to another thread, put it on the QueueHandler.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, and say yes."""
        entry = current()
        if entry is None:
            found = ("-", "-", "-", "-", 0)
        else:
            message, group, attempt = entry
            key = "-" if message.key is None else message.key.decode(errors="backslashreplace")
            found = (_text(message.id), _text(message.topic), _text(group), _text(key), attempt)
        fields = record.__dict__
        for name, value in zip(
            ("message_id", "topic", "group", "key", "attempt"), found, strict=True
        ):
            fields.setdefault(name, value)
        return True


def _text(text: str) -> str:
    shown = text[:SHOWN]
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode("ascii")
