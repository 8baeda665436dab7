"""A handler and its tests."""
