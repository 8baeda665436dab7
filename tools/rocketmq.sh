#!/usr/bin/env bash
# The tests of RocketMQ run it as local processes, in two versions: Java and Maven from Debian's
# packages, and its jars from Maven Central, into .cache. Get all that where it can be done; else say
# what will skip. Never fails: the tests decide what a skip means.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v java >/dev/null 2>&1 || ! command -v mvn >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ]; then mkdir -p /usr/share/man/man1; fi # its package fails without
    tools/apt.sh default-jre-headless maven || true
fi
for version in 5.5.0 5.3.3; do
    if ! said=$(.venv/bin/python -m reliable_mq.testing.brokers.rocketmq_jars "$version" 2>&1); then
        echo "$said" | tail -n 5 >&2
        echo "tests of RocketMQ $version run on containers only, or skip, and say so" >&2
    elif ! said=$(.venv/bin/python -c 'import sys, reliable_mq.testing.brokers.rocketmq_node as it; it.keep_classes(sys.argv[1])' "$version" 2>&1); then
        echo "$said" | tail -n 1 >&2
        echo "RocketMQ's classes are not kept: each start of it takes some seconds longer" >&2
    fi
done
