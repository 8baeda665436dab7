"""The version, in a module of its own so that every layer may tell it."""

__version__ = "0.1.0.dev0"
