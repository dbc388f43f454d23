from django.apps import AppConfig


class PricesConfig(AppConfig):
    name = "example_project.prices"
