"""A payment provider that knows idempotency keys. Its answers may get lost."""

from decimal import Decimal

charged: dict[str, Decimal] = {}
calls: list[str] = []
lost_answers: list[str] = []
"""What to say instead of the next answers."""


def charge(card: str, total: Decimal, *, idempotency_key: str) -> None:
    calls.append(idempotency_key)
    charged.setdefault(idempotency_key, total)
    if lost_answers:
        raise TimeoutError(lost_answers.pop())
