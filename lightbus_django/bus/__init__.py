"""Redis: the only package that speaks to it.

`client` sends commands and translates errors. `consumer_group` is one consumer's view of a group, `streams` has what
concerns whole streams. The Lua scripts are in `lua/`; each is a typed function in `scripts`.
"""
