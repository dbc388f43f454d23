from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("lightbus_django", "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="outboxevent",
            options={
                "permissions": [("republish_outboxevent", "Can publish outbox events again")],
                "verbose_name": "outbox event",
                "verbose_name_plural": "outbox events",
            },
        ),
    ]
