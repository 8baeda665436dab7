"""Every error of the package, split by what the caller does next.

    ReliableMQError
    ├── ConfigurationError (ValueError)   fix the program or its settings; before the first poll
    ├── PublishError                      `.message` keeps the id: `mq.resend(error.message)`
    │   ├── PublishRejected               not stored; the same message will be refused again
    │   │   ├── Unroutable                no such topic, or nothing is bound to it
    │   │   └── TooLarge                  over the limit of the broker
    │   ├── PublishUnknown                no answer: it may be stored; publish again, same id
    │   └── Backpressure                  not stored, there is no room: slow down, try again
    ├── BatchIncomplete                   `.outcomes`: a Receipt or a PublishError per input
    ├── TransportError                    the broker's side
    │   ├── ConnectionFailed              retried by the thread that owns the connection
    │   └── LeaseLost                     somebody else will get the delivery; nothing to do
    ├── CodecError                        the bytes do not fit the type; `.body` keeps them
    ├── StoreUnavailable                  the store cannot answer; nothing is settled meanwhile
    ├── Busy                              another owner holds the claim; try again later
    ├── BatchFailed                       raised by a batch handler: `{index: error}`
    └── signals Retry, Reject             raised or returned by handlers; they live in `outcome`

Texts say what happened, to which id, and what to do next. No text carries a body or a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reliable_mq.message import Message, Receipt

__all__ = [
    "Backpressure",
    "BatchFailed",
    "BatchIncomplete",
    "Busy",
    "CodecError",
    "ConfigurationError",
    "ConnectionFailed",
    "LeaseLost",
    "PublishError",
    "PublishRejected",
    "PublishUnknown",
    "ReliableMQError",
    "StoreUnavailable",
    "TooLarge",
    "TransportError",
    "Unroutable",
]


class ReliableMQError(Exception):
    """The base of every error this package raises."""


class ConfigurationError(ReliableMQError, ValueError):
    """The program or its settings ask for what cannot be given; the text names the remedy."""


class PublishError(ReliableMQError):
    """A publish that did not end in a Receipt; `message` keeps the id it was tried with."""

    def __init__(self, text: str, message: Message) -> None:
        super().__init__(text)
        self.message = message


class PublishRejected(PublishError):
    """The broker refused it: definitely not stored, and the same message will be refused again."""


class Unroutable(PublishRejected):
    """There is no such topic, or nothing is bound to it."""


class TooLarge(PublishRejected):
    """The message is over the broker's limit."""


class PublishUnknown(PublishError):
    """No answer by the deadline: it may be stored. Publish again with the same id."""


class Backpressure(PublishError):
    """There is no room: definitely not stored. Slow down, then try again."""


class BatchIncomplete(ReliableMQError):
    """Some messages of a batch have no Receipt; `outcomes` follows the order of the inputs."""

    def __init__(self, text: str, outcomes: Sequence[Receipt | PublishError]) -> None:
        super().__init__(text)
        self.outcomes = outcomes


class TransportError(ReliableMQError):
    """The broker, or the way to it, failed."""


class ConnectionFailed(TransportError):
    """The broker cannot be reached; the thread that owns the connection tries again."""


class LeaseLost(TransportError):
    """The broker took the delivery back; it comes again, here or at another member."""


class CodecError(ReliableMQError):
    """The bytes cannot be read as the handler's type; `body` keeps them, the text never does."""

    def __init__(self, text: str, body: bytes | None = None) -> None:
        super().__init__(text)
        self.body = body


class StoreUnavailable(ReliableMQError):
    """A store cannot answer; that is never taken for "not seen"."""


class Busy(ReliableMQError):
    """Another owner holds the claim; try again later."""


class BatchFailed(ReliableMQError):
    """Raised by a batch handler: these inputs failed, all others are done.

    `errors` maps the index in the handler's list to the exception (or Retry, Reject) it ended with.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        for index, error in errors.items():
            if type(index) is not int or not isinstance(error, BaseException):
                msg = f"BatchFailed({{{index!r}: {error!r:.80}}}): indexes map to exceptions"
                raise TypeError(msg)
        super().__init__(f"{len(errors)} of the batch failed, at {sorted(errors)}")
        self.errors = dict(errors)
