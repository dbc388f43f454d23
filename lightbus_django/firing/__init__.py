"""How an event gets onto the bus: `fire`, `on_commit`, the outbox and the relay.

Start with `api`. `on_commit` writes rows in `outbox`; `after_commit` has them published by `publisher`; `relay`
publishes what was left behind.
"""
