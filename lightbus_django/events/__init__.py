"""What an event is, apart from any server: its name, its id, its message, and the wire format.

Start with `message`; `codec` turns messages into the fields of a stream entry, and back.
"""
