"""Order within a key: per-key lanes, the watermark of offsets, and both as parts of their own."""
