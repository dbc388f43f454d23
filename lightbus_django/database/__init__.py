"""What this package needs of Django's databases and their drivers.

Start with `errors`, which says which errors are transient, and `transaction_monitor`, which notices a handler that
ends its transaction. `chain` and `rollback_detector` use internals of Django and psycopg, and do without if necessary.
"""
