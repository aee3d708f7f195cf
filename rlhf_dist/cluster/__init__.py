"""Ray sessions, placement and the watch over workers."""
