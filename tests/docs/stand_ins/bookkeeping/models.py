from django.db import models


class Booking(models.Model):
    """Nothing is unique, so that doubles show."""

    order_number = models.IntegerField(default=0)
    total = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    currency = models.CharField(max_length=3, default="EUR")
    text = models.CharField(max_length=200)

    class Meta:
        app_label = "bookkeeping"

    def __str__(self) -> str:
        return f"{self.order_number} {self.text}"


class Price(models.Model):
    sku = models.CharField(max_length=20, unique=True)
    price = models.DecimalField(max_digits=10, decimal_places=2)
    currency = models.CharField(max_length=3, default="EUR")
    valid_from = models.DateTimeField(null=True)

    class Meta:
        app_label = "bookkeeping"

    def __str__(self) -> str:
        return f"{self.sku} {self.price}"
