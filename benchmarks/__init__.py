"""How fast it is: ours, peers and the limit in one run, with correctness counted in every run.

make bench                every scenario; one JSON line each, and a table at the end
make bench ONLY=B7        one family; ONLY="B7-20 LANES" picks cases and families
python -m benchmarks --list

Nothing here is a timed test: a floor that is missed is marked in the table and exits 0. A message
that is lost, doubled or out of order exits 1. `tests/test_benchmarks.py` runs it all once, tiny.
"""
