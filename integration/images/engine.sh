#!/usr/bin/env bash
# Have a container engine, if that can be done without asking anybody: one that answers is left as it
# is; else docker is installed and started, as root on Debian.
#
# Exit 1 when there is none afterwards: what to do then is for the caller to decide. The engine that
# is started here stays. It publishes ports on 127.0.0.1 only. To stop it: kill the process whose id is
# in /var/run/docker.pid.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { echo "engine: $*" >&2; }

answers() { timeout 10 docker info >/dev/null 2>&1; }

if answers; then exit 0; fi
if [ "$(id -u)" -ne 0 ]; then
    say "no container engine answers, and starting one takes root"
    exit 1
fi
if ! command -v dockerd >/dev/null 2>&1 || ! command -v iptables >/dev/null 2>&1; then
    tools/apt.sh docker.io iptables || exit 1
fi
if answers; then exit 0; fi # the package may have started it
log=/var/log/dockerd.log
say "starting dockerd, which logs to $log"
setsid dockerd --ip 127.0.0.1 >"$log" 2>&1 </dev/null &
for _ in $(seq 150); do
    if answers; then exit 0; fi
    if ! kill -0 $! 2>/dev/null; then break; fi
    sleep 0.2
done
say "dockerd does not answer:"
tail -n 5 "$log" >&2
exit 1
