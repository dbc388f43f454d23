from django.db import models
from django.utils import timezone


class Order(models.Model):
    email = models.EmailField()
    total = models.DecimalField(max_digits=10, decimal_places=2)
    currency = models.CharField(max_length=3)
    placed_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"{self.pk} {self.email}"


class OrderLine(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    sku = models.CharField(max_length=20)
    quantity = models.PositiveIntegerField()
    price = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"{self.quantity} {self.sku}"
