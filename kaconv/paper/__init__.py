"""The published table, and ours beside it: `kaconv table`."""
