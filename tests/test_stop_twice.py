"""Every call has a deadline of its own, `stop` while another `stop` goes on, too."""

import threading

from reliable_mq import ReliableMQ


def test_a_second_stop_ends_when_its_own_time_is_over():
    """After a second Ctrl-C the end of the process stops what is still being stopped for 25 s."""
    mq = ReliableMQ("memory://")
    runs, may_end = threading.Event(), threading.Event()

    @mq.consumer("orders", group="billing")
    def handle(order: dict) -> None:
        runs.set()
        may_end.wait(10.0)

    mq.start()
    mq.publish("orders", {"id": 1})
    assert runs.wait(10.0)
    patient = threading.Thread(target=mq.stop, args=(20.0,))
    hasty = threading.Thread(target=mq.stop, args=(0.05,))
    patient.start()
    hasty.start()
    hasty.join(0.5)
    still_waits = hasty.is_alive()
    may_end.set()
    patient.join()
    hasty.join()

    assert not still_waits
