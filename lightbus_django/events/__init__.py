"""What an event is, independent of Redis and the database: its name, id, times, message and wire format.

`message` is what handlers get. `codec` turns it into the fields of a stream entry and back. Start with `message`.
"""
