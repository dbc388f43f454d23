from django.db import models


class CompetitorPrice(models.Model):
    """What a competitor asked for an article, and when: one row for each change we heard of."""

    sku = models.CharField(max_length=20)
    price = models.DecimalField(max_digits=10, decimal_places=2)
    change = models.PositiveIntegerField(help_text="The number of the change, as the crawler counts.")

    def __str__(self) -> str:
        return f"{self.sku}: {self.price}"


class PriceAlert(models.Model):
    """A message to the shop's staff: one row for each change."""

    change = models.PositiveIntegerField()
    text = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.text
