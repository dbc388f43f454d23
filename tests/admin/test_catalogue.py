"""The Catalogue page."""

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from lightbus_django import on_commit

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

URL = reverse("admin:lightbus_django_catalogue")


def shown(client):
    return " ".join(client.get(URL).content.decode().split())


def test_shows_events_with_payload_producers_and_listeners(admin_client, book):
    on_commit("shop.parcel_sent", note="<b>")
    text = shown(admin_client)
    assert "<strong>shop.order_placed</strong>" in text
    assert "number: number" in text
    assert "price-monitor: book" in text
    assert "<strong>shop.parcel_sent</strong>" in text
    assert "<b>" not in text


def test_is_linked_from_the_bus_page(admin_client, book):
    assert (
        f'href="{URL}"' in admin_client.get(reverse("admin:lightbus_django_consumergroup_changelist")).content.decode()
    )


def test_without_redis_it_says_so(admin_client, book, lightbus):
    lightbus(URL="redis://127.0.0.1:1/0")
    assert "errornote" in shown(admin_client)


def test_needs_the_permission_to_view_the_bus(client, db):
    user = User.objects.create_user("eva", is_staff=True)
    client.force_login(user)
    assert client.get(URL).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_consumergroup"))
    assert client.get(URL).status_code == 200
