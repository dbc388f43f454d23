from django.apps import AppConfig
from django.core import checks
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class LightbusDjangoConfig(AppConfig):
    name = "lightbus_django"
    verbose_name = _("Lightbus")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from .checks import check_groups, check_listeners, check_settings

        checks.register(check_settings, "lightbus")
        checks.register(check_listeners, "lightbus")
        checks.register(check_groups, checks.Tags.database)
        autodiscover_modules("listeners")
