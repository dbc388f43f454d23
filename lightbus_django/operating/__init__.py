"""Answers for people who operate the bus: from heartbeats and figures in Redis, and from the tables.

Commands and admin pages show what these modules return: `status`, `story` (of one event), `failures`, `pausing`.
Start with `status`.
"""
