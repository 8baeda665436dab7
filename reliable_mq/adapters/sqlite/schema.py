"""The tables of the file, and the version that says which they are.

A log: one row for each message. A group has a cursor: what lies before it has been taken. A row of
`mq_state` is a message that the group has taken and not finished: in somebody's hand (`owner`), not
yet due (`due`), or waiting (neither). So publishing costs the same whatever the number of groups,
and a new group costs one row.

Of the waiting messages of a key only the first is `ready`, and a message without a key is always:
0 = for any member, else for the member that has the key. A fetch walks over what is ready, and from
there to the next of the same key: what is blocked costs it nothing.

Other programs may publish with plain SQL; what they leave out has a default:

    INSERT INTO mq_message (topic, key, body)
    VALUES ((SELECT id FROM mq_topic WHERE name = 'orders'), x'6b', '{"total": 1}')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reliable_mq.errors import ConfigurationError

if TYPE_CHECKING:
    from reliable_mq.adapters.sqlite.connection import Connection

__all__ = ["SET_ASIDE", "VERSION", "lay_out"]

#: The tables below. A file with a higher one was made by a later release.
VERSION: Final = 1
#: The `owner` of a damaged message: nobody gets it.
SET_ASIDE: Final = -1

TABLES: Final = (
    """CREATE TABLE mq_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID""",
    """CREATE TABLE mq_topic (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        dead_letters INTEGER NOT NULL DEFAULT 0  -- kept until they are discarded
    )""",
    """CREATE TABLE mq_group (
        id INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL REFERENCES mq_topic (id),
        name TEXT NOT NULL,
        cursor INTEGER NOT NULL,                 -- the first position not taken
        placed INTEGER NOT NULL,                 -- whether its beginning is fixed
        active INTEGER,                          -- order "partition": the member that has it all
        UNIQUE (topic, name)
    )""",
    # AUTOINCREMENT: without it SQLite gives the position of a deleted message to another one.
    """CREATE TABLE mq_message (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        topic INTEGER NOT NULL REFERENCES mq_topic (id),
        only_group INTEGER,                      -- a retry copy: for this group, and not in the log
        id TEXT,
        key BLOB,
        body BLOB,
        headers BLOB,                            -- msgpack pairs; text: a JSON object
        created_at REAL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
        stored_at REAL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
        due REAL,                                -- epoch seconds
        origin TEXT,                             -- the topic it was published to, if another
        crc INTEGER                              -- NULL: not ours, not checked
    )""",
    "CREATE INDEX mq_log ON mq_message (topic) WHERE only_group IS NULL",
    """CREATE TABLE mq_state (
        grp INTEGER NOT NULL,
        position INTEGER NOT NULL,
        key BLOB,
        due REAL,
        ready INTEGER,
        owner INTEGER,
        attempt INTEGER NOT NULL DEFAULT 1,
        redelivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (grp, position)
    ) WITHOUT ROWID""",
    "CREATE INDEX mq_ready ON mq_state (grp, ready, position) WHERE ready IS NOT NULL",
    """CREATE INDEX mq_waiting ON mq_state (grp, key, position)
        WHERE key IS NOT NULL AND owner IS NULL AND due IS NULL""",
    "CREATE INDEX mq_delayed ON mq_state (grp, due) WHERE due IS NOT NULL",
    "CREATE INDEX mq_in_hand ON mq_state (owner) WHERE owner IS NOT NULL",
    # Order "key": the member that has any message of the key in hand.
    """CREATE TABLE mq_key_lease (
        grp INTEGER NOT NULL,
        key BLOB NOT NULL,
        owner INTEGER NOT NULL,
        PRIMARY KEY (grp, key)
    ) WITHOUT ROWID""",
    """CREATE TABLE mq_member (
        id INTEGER PRIMARY KEY,                  -- random: after a COMMIT in doubt it is still ours
        boot TEXT NOT NULL,
        until REAL NOT NULL,                     -- monotonic seconds of that boot
        lease REAL NOT NULL                      -- seconds
    )""",
    """CREATE TABLE mq_membership (
        grp INTEGER NOT NULL,
        member INTEGER NOT NULL REFERENCES mq_member (id) ON DELETE CASCADE,
        mode TEXT NOT NULL,
        PRIMARY KEY (grp, member)
    ) WITHOUT ROWID""",
    # What a publisher committed last: after a COMMIT without an answer it tells.
    """CREATE TABLE mq_publisher (
        token TEXT PRIMARY KEY,
        batch INTEGER NOT NULL,
        seen REAL NOT NULL
    ) WITHOUT ROWID""",
)


def lay_out(connection: Connection, wait: float) -> None:
    """Make the tables of a new file, check the version of an old one.

    Raises: ConfigurationError where a later release made it.
    """
    if not _made(connection):
        connection.begin(wait)
        try:
            if not _made(connection):
                for table in TABLES:
                    connection.execute(table)
                connection.execute("INSERT INTO mq_meta VALUES ('version', ?)", (VERSION,))
                connection.execute(
                    "INSERT INTO mq_meta VALUES ('file', lower(hex(randomblob(16))))"
                )
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
    version = connection.row("SELECT value FROM mq_meta WHERE name = 'version'")
    if version is None or version[0] != VERSION:
        text = (
            f"{connection.path} has version {version and version[0]!r} of the tables, this release "
            f"knows version {VERSION}: use the release that made it, or a new file"
        )
        raise ConfigurationError(text)


def _made(connection: Connection) -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'mq_meta'"
    return connection.row(sql) is not None
