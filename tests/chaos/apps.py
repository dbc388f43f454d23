from django.apps import AppConfig
from django.conf import settings


class ChaosConfig(AppConfig):
    name = "tests.chaos"
    label = "chaos"

    def ready(self) -> None:
        if settings.CHAOS_SABOTAGE:
            from .sabotage import sabotage

            sabotage(settings.CHAOS_SABOTAGE)
