"""Rules without I/O: ``(event, now)`` in, actions out."""
