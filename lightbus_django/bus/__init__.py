"""Redis: the only package that speaks to it.

`client` sends commands and translates errors; `server` and `cluster` know where commands go. `consumer_group` is one
consumer's view of a group; `streams` is about whole streams. The Lua scripts are in `lua/`, each with a function in
`scripts`. Start with `client`.
"""
