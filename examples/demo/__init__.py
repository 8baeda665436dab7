"""An order service on one broker: `python -m examples.demo`, or `make demo`.

shop       what an order is, what billing does with it, which orders give trouble
consumer   a consumer process, two of which run, and one of which is killed twice
stage      publishes, kills, restarts, and knows when all is done
verdict    compares what was promised with what happened
screen     what you see meanwhile
broken     for the tests: the same with one safety removed, which the verdict has to notice
"""
