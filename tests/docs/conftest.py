import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from django.apps import apps
from django.db import connections

from lightbus_django.conf import Settings, get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.running.worker import Worker

HERE = Path(__file__).resolve().parent
GUIDE = HERE.parent.parent / "docs" / "guide.md"


@dataclass
class Section:
    """One heading of the guide, and what is below it up to the next one."""

    heading: str
    text: str = ""
    blocks: list[tuple[str, str, int]] = field(default_factory=list)
    """Language, content and first line of each fenced block."""

    def code(self, language: str) -> list[tuple[str, int]]:
        return [(content, line) for name, content, line in self.blocks if name == language]

    def table(self) -> list[list[str]]:
        """The cells of the section's first table, without its head."""
        rows = re.findall(r"^\|(.+)\|$", self.text, re.MULTILINE)
        return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


def read_guide() -> dict[str, Section]:
    sections = [Section("")]
    lines = iter(enumerate(GUIDE.read_text().splitlines(), start=1))
    for number, line in lines:
        if line.startswith("```"):
            content = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                content.append(inner)
            sections[-1].blocks.append((line[3:], "\n".join(content), number + 1))
        elif match := re.fullmatch(r"#+ (.+)", line):
            sections.append(Section(match[1]))
        else:
            sections[-1].text += line + "\n"
    by_heading = {section.heading: section for section in sections}
    assert len(by_heading) == len(sections), "two headings are the same"
    return by_heading


SECTIONS = read_guide()
CODE = [block for section in SECTIONS.values() for block in section.code("python")]
TESTED: set[str] = set()


def of(*headings: str) -> pytest.MarkDecorator:
    """Make a test that of the examples below these headings."""
    TESTED.update(headings)
    return pytest.mark.parametrize("example", [headings], indirect=True, ids=[headings[-1]])


class Example:
    """The Python blocks of some sections, run one after the other in one module."""

    def __init__(self, headings: tuple[str, ...], module: ModuleType) -> None:
        self.module = module
        self.left = [block for heading in headings for block in SECTIONS[heading].code("python")]

    def run(self) -> Any:
        """Run the next block; return the module. What the guide imported before is there."""
        content, line = self.left.pop(0)
        for earlier, its_line in CODE:
            if its_line < line:
                tree = ast.parse(earlier)
                tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
                exec(compile(tree, str(GUIDE), "exec"), self.module.__dict__)
        # Blank lines in front, so that a traceback shows the guide's own line.
        exec(compile("\n" * (line - 1) + content, str(GUIDE), "exec"), self.module.__dict__)
        return self.module


@pytest.fixture(autouse=True)
def defaults(lightbus: Callable[..., None]) -> None:
    """The guide speaks of the default settings, whatever the environment says."""
    fields = msgspec.structs.fields(Settings)
    changeable = {field.encode_name: field.default for field in fields if not field.required}
    del changeable["URL"]
    lightbus(**changeable)


@pytest.fixture
def stand_ins(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules that the examples import, with their tables. Nothing else sees these apps."""
    monkeypatch.syspath_prepend(HERE / "stand_ins")
    import bookkeeping.models  # noqa: F401
    import shop.models  # noqa: F401

    models = [*apps.all_models["shop"].values(), *apps.all_models["bookkeeping"].values()]
    for connection in connections.all():
        with connection.schema_editor() as editor:
            for model in models:
                editor.create_model(model)
    yield
    for connection in connections.all():
        with connection.schema_editor() as editor:
            for model in reversed(models):
                editor.delete_model(model)


@pytest.fixture
def example(
    request: pytest.FixtureRequest, stand_ins: None, listeners: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Example]:
    # With a loader, for without it Python 3.15 warns when it makes a traceback.
    spec = spec_from_file_location("guide", GUIDE, loader=SourceFileLoader("guide", str(GUIDE)))
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "guide", module)  # where dataclasses look for their annotations
    example = Example(request.param, module)
    yield example
    assert not example.left, "the test did not run all of the section's examples"


@pytest.fixture
def work(r: object, listeners: object, lightbus: object) -> Callable[..., None]:
    """Do what `lightbus_listen --burst` does, in the service `bookkeeping`."""

    def run(service_name: str = "bookkeeping", process_name: str = "worker") -> None:
        worker = Worker(
            registry.select(), service_name=service_name, process_name=process_name, settings=get_settings()
        )
        try:
            worker.run_burst()
        finally:
            worker.client.close()

    return run
