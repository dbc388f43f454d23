from django.db import migrations, models


class Migration(migrations.Migration):
    """Names and help texts of fields; no table changes."""

    dependencies = [("lightbus_django", "0004_outbox_waiting")]

    operations = [
        migrations.AlterField(
            model_name="consumergroup",
            name="event_names",
            field=models.TextField(
                help_text="The events that the listener gets from this stream, one per line.", verbose_name="events"
            ),
        ),
        migrations.AlterField(
            model_name="consumergroup",
            name="start_id",
            field=models.CharField(
                blank=True, help_text="A stream id. Empty if unknown.", max_length=41, verbose_name="started after"
            ),
        ),
        migrations.AlterField(
            model_name="consumergroup",
            name="starts_at",
            field=models.DateTimeField(
                blank=True,
                help_text="The listener skips events first published before this time. Empty: it skips none.",
                null=True,
                verbose_name="starts at",
            ),
        ),
        migrations.AlterField(
            model_name="consumergroup",
            name="position",
            field=models.CharField(
                help_text="All entries up to this stream id are acknowledged.", max_length=41, verbose_name="position"
            ),
        ),
        migrations.AlterField(
            model_name="failedevent",
            name="fields",
            field=models.TextField(help_text="The entry as it was in the stream.", verbose_name="content"),
        ),
        migrations.AlterField(
            model_name="outboxevent",
            name="due_at",
            field=models.DateTimeField(
                blank=True,
                help_text="From this time on, any relay may publish the event. Empty once it is published.",
                null=True,
                verbose_name="due at",
            ),
        ),
        migrations.AlterField(
            model_name="outboxevent",
            name="claimed_until",
            field=models.DateTimeField(
                blank=True,
                help_text="Until this time, one process is publishing the event.",
                null=True,
                verbose_name="claimed until",
            ),
        ),
    ]
