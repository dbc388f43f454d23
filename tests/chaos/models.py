from django.db import models
from django.utils import timezone


class Sent(models.Model):
    """What a producer did: written in the transaction that fires the event, so it is there if and only if that is.

    The id is the sequence's, which gives no number twice: that of a row that was rolled back stays unknown.
    """

    producer = models.CharField(max_length=20)
    number = models.IntegerField()
    """Counts the producer's transactions."""
    part = models.IntegerField()
    """Counts the events of one transaction."""

    class Meta:
        indexes = [models.Index(fields=["producer", "number"])]

    def __str__(self) -> str:
        return f"{self.pk} ({self.producer} {self.number}.{self.part})"


class Alone(models.Model):
    """An event that was fired with `fire`, and acknowledged by Redis."""

    id = models.BigIntegerField(primary_key=True)

    def __str__(self) -> str:
        return f"{self.pk}"


class Effect(models.Model):
    """What a handler did: one row for each time that it did it, nothing unique, so that doubles show."""

    listener = models.CharField(max_length=20)
    api_name = models.CharField(max_length=20)
    sent = models.BigIntegerField()
    attempt = models.IntegerField()
    stream_id = models.CharField(max_length=50)
    run = models.CharField(max_length=40)
    """Tells the processes that handled from each other, also those of one name."""
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.listener} {self.sent}"
