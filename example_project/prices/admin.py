from django.contrib import admin

from .models import CompetitorPrice, PriceAlert


@admin.register(CompetitorPrice)
class CompetitorPriceAdmin(admin.ModelAdmin):
    list_display = ("change", "sku", "price")


@admin.register(PriceAlert)
class PriceAlertAdmin(admin.ModelAdmin):
    list_display = ("change", "text")
