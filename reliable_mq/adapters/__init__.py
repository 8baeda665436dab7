"""One broker behind one port, per module; `base` is the port."""
