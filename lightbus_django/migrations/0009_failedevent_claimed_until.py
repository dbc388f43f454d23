from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("lightbus_django", "0008_processedevent_edited_by")]

    operations = [
        migrations.AddField(
            model_name="failedevent",
            name="claimed_until",
            field=models.DateTimeField(
                blank=True,
                help_text="Until then, the process that is retrying it has it to itself.",
                null=True,
                verbose_name="claimed until",
            ),
        ),
    ]
