from django.db import migrations, models


class Migration(migrations.Migration):
    """Apart from the one before, which builds an index of the failed events: so the inbox need not wait for that."""

    dependencies = [
        ("lightbus_django", "0007_retry_requests"),
    ]

    operations = [
        migrations.AddField(
            model_name="processedevent",
            name="edited_by",
            field=models.CharField(
                blank=True,
                db_default="",
                help_text="Who edited the payload that this listener gets. Empty: it is as it was fired.",
                max_length=150,
                verbose_name="payload edited by",
            ),
        ),
    ]
