"""Requests of people to retry failed events, with what is needed to say what came of them."""

from collections.abc import Iterable
from datetime import datetime

from django.db import models
from django.db.models import Count, F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from lightbus_django.database.text import storable

FAILED_AGAIN = ~Q(failed_events__failed_at=F("failed_events__failed_before_retry"))
UNTRIED = Q(failed_events__failed_at=F("failed_events__failed_before_retry"))


class RetryRequestQuerySet(models.QuerySet["RetryRequest"]):
    def latest_since(self, time: datetime, limit: int) -> list[int]:
        """Return the primary keys of the latest requests with events since a time, the latest first."""
        requests = self.filter(requested_at__gte=time, total__gt=0).order_by("-pk")
        return list(requests.values_list("pk", flat=True)[:limit])

    def with_events(self, keys: Iterable[int]) -> "RetryRequestQuerySet":
        """Return these requests, with the numbers of their failed events; in one query, so that the numbers agree.

        `failed_now` is how many have failed since the request, `to_come` how many have not and have a next attempt,
        `given_up` how many have neither.
        """
        return self.filter(pk__in=list(keys)).annotate(
            failed_now=Count("failed_events", filter=FAILED_AGAIN),
            to_come=Count("failed_events", filter=UNTRIED & Q(failed_events__next_attempt_at__isnull=False)),
            given_up=Count("failed_events", filter=UNTRIED & Q(failed_events__next_attempt_at__isnull=True)),
        )


class RetryRequest(models.Model):
    """Somebody asked for a retry of failed events, which point at it until they are handled, or leave it.

    An event leaves a request when it is discarded, or retried by a later request. The request counts those, because
    what is neither counted here nor a failed event any more was handled.
    """

    id = models.BigAutoField(primary_key=True)
    requested_at = models.DateTimeField(_("requested at"), default=timezone.now)
    requested_by = models.CharField(_("requested by"), max_length=150, blank=True)
    total = models.PositiveIntegerField(_("events"), default=0)
    failed_again = models.PositiveIntegerField(
        _("failed again"), default=0, help_text=_("Of the events that have left it, those that had failed again.")
    )
    withdrawn = models.PositiveIntegerField(
        _("withdrawn"), default=0, help_text=_("Of the events that have left it, those that had not been retried.")
    )

    objects = RetryRequestQuerySet.as_manager()

    class Meta:
        verbose_name = _("retry request")
        verbose_name_plural = _("retry requests")

    def __str__(self) -> str:
        return f"{self.total} events, by {self.requested_by}"


def new_retry_request(using: str, by: str) -> RetryRequest:
    """Insert a request that has no events yet; `by` is who asks."""
    by = storable(by, RetryRequest._meta.get_field("requested_by"), using)
    return RetryRequest.objects.using(using).create(requested_by=by)
