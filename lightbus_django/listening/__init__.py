"""How an event reaches its handler, once: `@listens_to`, consumers, the inbox, failures and retries.

Start with `consumer`, whose `step` is one listener's loop. `in_flight` has the states of an entry, from `reader`, which
reads and acknowledges, to `processor`, which hands it to `inbox`: that handles each event in a transaction together
with its idempotency key. `failures` records what went wrong.
"""
