from django.db import migrations, models

from lightbus_django.database.indexes import NotNullIndex


class Migration(migrations.Migration):
    dependencies = [("lightbus_django", "0003_consumer_groups")]

    operations = [
        migrations.AddField(
            model_name="outboxevent",
            name="claimed_until",
            field=models.DateTimeField(
                blank=True, help_text="Until then somebody is publishing it.", null=True, verbose_name="claimed until"
            ),
        ),
        migrations.AddIndex(
            model_name="outboxevent",
            index=NotNullIndex(fields=["due_at", "id"], name="lightbus_outbox_waiting"),
        ),
        migrations.AddIndex(
            model_name="outboxevent",
            index=NotNullIndex(fields=["claimed_until"], name="lightbus_outbox_claimed"),
        ),
        migrations.AddIndex(
            model_name="failedevent",
            index=models.Index(fields=["consumer_group", "next_attempt_at"], name="lightbus_failed_group_due"),
        ),
        migrations.RemoveIndex(model_name="outboxevent", name="lightbus_outbox_due"),
    ]
