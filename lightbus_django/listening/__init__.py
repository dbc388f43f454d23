"""How an event reaches its handler, once: `@listens_to`, consumers, the inbox, failures and retries.

Start with `consumer`, whose `step` is one listener's loop: `reader` reads entries, `inbox` handles each in a
transaction together with its idempotency key, and `failures` records what went wrong.
"""
