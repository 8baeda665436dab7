#!/usr/bin/env bash
# The tests of Kafka run it as a local process: Java and Maven from Debian's packages, and its jars from
# Maven Central, into .cache. Get all that where it can be done; else say what will skip. Never fails:
# the tests decide what a skip means.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v java >/dev/null 2>&1 || ! command -v mvn >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ]; then mkdir -p /usr/share/man/man1; fi # its package fails without
    tools/apt.sh default-jre-headless maven || true
fi
if ! said=$(.venv/bin/python -m reliable_mq.testing.brokers.kafka_jars 2>&1); then
    echo "$said" | tail -n 5 >&2
    echo "tests of Kafka run on containers only, or skip, and say so" >&2
elif ! said=$(.venv/bin/python -c 'import reliable_mq.testing.brokers.kafka_node as it; it.keep_classes()' 2>&1); then
    echo "$said" | tail -n 1 >&2
    echo "Kafka's classes are not kept: each start of it takes a second or two longer" >&2
fi
