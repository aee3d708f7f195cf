"""The experience index, the weight versions, and the Arrow schema of both."""
