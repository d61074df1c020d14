"""The command `tiercel`."""
