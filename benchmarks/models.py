"""The business of the service that is measured."""

from django.db import models


class Price(models.Model):
    """What a handler, or a view that fires, writes: one row per event."""

    sku = models.CharField(max_length=40)
    price = models.DecimalField(max_digits=10, decimal_places=2)
    number = models.BigIntegerField()
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.sku}: {self.price}"


class Stock(models.Model):
    """What many handlers, and views, update: a few rows, by their key."""

    amount = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.pk}: {self.amount}"
