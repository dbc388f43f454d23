from django.db import models


class Effect(models.Model):
    """What a handler did: one row for each time that it did it, nothing unique, so that doubles show."""

    name = models.CharField(max_length=200)
    number = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


class Parent(models.Model):
    name = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.name


class Child(models.Model):
    """Its foreign key is checked when the transaction commits, where the database defers that."""

    parent = models.ForeignKey(Parent, models.CASCADE)

    def __str__(self) -> str:
        return str(self.parent_id)
