"""For tests: contract suites, the in-memory app, a fake clock, fault injection, history checks."""
