"""What this package needs of Django's databases and their drivers.

`errors` says which errors are transient, `transactions` whether a handler ended its transaction. `chain` and
`rollback_detector` use internals of drivers and of Django; each checks them first and has a plain way to fall back to.
"""
