"""What a RocketMQ under test is set to: the files of its name server, its broker and its proxy.

It is small, quick to notice what changes, and confirms what is on disk.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BROKER_JVM", "LOGBACK", "SMALL_JVM", "Mode", "broker", "name_server", "proxy"]

#: A proxy with the broker inside, or before one.
Mode = Literal["LOCAL", "CLUSTER"]

#: Options of Java, all of them known to Java 8 as well, which is what the public image has. Each
#: program offers TLS unasked, and would spend a second of each start on keys for it: who wants TLS
#: at the proxy sets this to `permissive` again.
QUICK: Final = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Dtls.server.mode=disabled")

#: Of a name server, and of a proxy without a broker. One that a test kills does not live to need
#: the second compiler.
SMALL_JVM: Final = ("-Xms32m", "-Xmx128m", "-XX:TieredStopAtLevel=1", *QUICK)

#: Of a broker. It looks through all of its clock for delays each second: without the second
#: compiler that takes a sixth of a core for as long as it runs.
BROKER_JVM: Final = ("-Xms128m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m", *QUICK)

BROKER: Final = {
    "brokerClusterName": "DefaultCluster",
    "brokerName": "broker-a",
    "brokerId": "0",
    "brokerIP1": "127.0.0.1",
    "brokerIP2": "127.0.0.1",
    "brokerRole": "ASYNC_MASTER",
    "flushDiskType": "SYNC_FLUSH",
    "autoCreateTopicEnable": "false",
    "autoCreateSubscriptionGroup": "true",
    "defaultTopicQueueNums": "4",
    # Files are laid out in full size: a gigabyte each, by default.
    "mappedFileSizeCommitLog": "67108864",
    "mappedFileSizeConsumeQueue": "600000",
    "mappedFileSizeTimerLog": "10485760",
    "maxHashSlotNum": "50000",
    "maxIndexNum": "200000",
    "transientStorePoolEnable": "false",
    "timerWheelEnable": "true",
    "timerPrecisionMs": "100",
    # An undecided transaction is asked about after three seconds, and every three seconds.
    "transactionTimeOut": "3000",
    "transactionCheckInterval": "3000",
    "transactionCheckMax": "15",
    # What became of one is written at once. Otherwise it is asked about although it is decided, and
    # 5.5.0 spends a whole core on a thread that finds nothing to write. Not while it runs: see
    # `RocketMQ.reconfigure`.
    "transactionOpMsgMaxSize": "1",
    "transactionOpBatchInterval": "86400000",
    # 5.5.0 does not sleep until this has passed since its start: ten seconds of a core, by default.
    "transactionMetricFlushInterval": "500",
    "recallMessageEnable": "true",
    "enablePropertyFilter": "true",
    # A slow disk is waited for, before a publisher is told that the broker is busy.
    "waitTimeMillsInSendQueue": "3000",
    "osPageCacheBusyTimeOutMills": "5000",
    # A disk that is nearly full for other reasons does not stop it.
    "diskMaxUsedSpaceRatio": "95",
    "diskSpaceCleanForciblyRatio": "97",
    "diskSpaceWarningLevelRatio": "99",
}

#: By default a receive may not ask for less than ten seconds, nor wait for less than five, and a
#: topic that was asked for before it was made stays unknown for twenty.
PROXY: Final = {
    "rocketMQClusterName": "DefaultCluster",
    "localServeAddr": "127.0.0.1",
    "minInvisibleTimeMillsForRecv": 1000,
    "grpcClientConsumerMinLongPollingTimeoutMillis": 500,
    "topicRouteServiceCacheRefreshSeconds": 1,
    "topicRouteServiceCacheExpiredSeconds": 2,
    "topicConfigCacheRefreshSeconds": 1,
    "topicConfigCacheExpiredSeconds": 2,
    "subscriptionGroupConfigCacheRefreshSeconds": 1,
    "subscriptionGroupConfigCacheExpiredSeconds": 2,
    "grpcShutdownTimeSeconds": 3,
    # The way to a topic leads through the port that the client has dialled: so a TCP proxy of the
    # test keeps its clients. Only a proxy without a broker inside (mode CLUSTER) heeds it.
    "useEndpointPortFromRequest": True,
}

#: All that it logs goes to its output. The packages are those of RocketMQ's own copy of logback.
LOGBACK: Final = """\
<configuration>
  <appender name="C" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>[%d] %p %m \\(%c\\)%n</pattern></encoder>
  </appender>
  <logger name="RocketmqTransaction" level="ERROR"/>
  <root level="WARN"><appender-ref ref="C"/></root>
</configuration>
"""


def name_server(port: int, *, everywhere: bool = False) -> str:
    """The file of a name server: it listens on 127.0.0.1, or everywhere, as in a container."""
    return _lines({"listenPort": str(port), "bindAddress": _bound(everywhere)})


def broker(
    *,
    port: int,
    replicas_port: int,
    name_server_port: int,
    store: str,
    everywhere: bool = False,
    more: Mapping[str, str] | None = None,
) -> str:
    """The file of a broker: `store` is its folder, `more` are lines that go over ours."""
    placed = {
        "listenPort": str(port),
        "haListenPort": str(replicas_port),
        "bindAddress": _bound(everywhere),
        "namesrvAddr": f"127.0.0.1:{name_server_port}",
        "storePathRootDir": store,
        "storePathCommitLog": f"{store}/commitlog",
    }
    return _lines(BROKER | placed | dict(more or {}))


def proxy(
    mode: Mode,
    *,
    port: int,
    remoting_port: int,
    name_server_port: int,
    more: Mapping[str, Any] | None = None,
) -> str:
    """The file of a proxy; `more` are entries that go over ours."""
    placed = {
        "proxyMode": mode,
        "namesrvAddr": f"127.0.0.1:{name_server_port}",
        "grpcServerPort": port,
        "remotingListenPort": remoting_port,
    }
    return json.dumps(PROXY | placed | dict(more or {}), indent=1)


def _bound(everywhere: bool) -> str:  # noqa: FBT001 - of this file alone
    return "0.0.0.0" if everywhere else "127.0.0.1"  # noqa: S104 - docker publishes on 127.0.0.1


def _lines(settings: Mapping[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in settings.items())
