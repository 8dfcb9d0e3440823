"""Fixtures that every kind of test uses: real servers on loopback, started once a run, and homes that fit a socket path."""
