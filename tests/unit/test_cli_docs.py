"""The documentation keeps up: every command, option, setting and error code is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import pytest

from controlplane import errors
from controlplane.cli.main import cli
from controlplane.client import ModelMoraClient
from controlplane.gateway import errors as gateway
from controlplane.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CLI_PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
COMMON = {"--url", "--json", "--debug", "--help"}


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield f"{prefix} {name}", command
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


COMMANDS = dict(commands(cli, "modelmora"))


def section(name: str) -> str:
    match = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", CLI_PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/cli.md has no section '## {name}'"
    return match[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_an_example_in_its_help(name: str) -> None:
    command = COMMANDS[name]
    shown = command.get_help(click.Context(command, info_name=name))
    example = shown.partition("Example:")[2].partition("Options:")[0]
    assert name in example
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_documented_with_its_options(name: str) -> None:
    text = section(name)
    options = (o for o in COMMANDS[name].params if isinstance(o, click.Option))
    names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    missing = {option for option in names - COMMON if f"{option}" not in text}
    assert {m for m in missing if not m.startswith("--no-")} == set()


def test_page_documents_no_other_commands() -> None:
    assert set(re.findall(r"^## (modelmora .*)$", CLI_PAGE, re.MULTILINE)) == set(COMMANDS)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", page, re.MULTILINE))
    assert list(rows) == list(Settings.__struct_fields__)
    for field in msgspec.structs.fields(Settings):
        value = field.default
        if value is not None and value != ():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert rows[field.name].strip("`") in {text, text.removesuffix(".0")}


def error_classes() -> dict[str, type[Exception]]:
    found: dict[str, type[Exception]] = {}
    for module in (errors, gateway):
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, errors.ModelMoraError):
                found[thing.code] = thing
    return found


def test_every_error_is_documented_with_its_statuses() -> None:
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    rows = {
        code: (http, grpc)
        for code, http, grpc in re.findall(
            r"^\| ([A-Z_0-9]+) \| (\S+) \| (\S+) \|", page, re.MULTILINE
        )
    }
    classes = error_classes()
    assert rows.keys() == classes.keys()
    for code, error in classes.items():
        http, grpc = rows[code]
        if http != "–":
            assert int(http) == gateway.HTTP_STATUS[_nearest(error, gateway.HTTP_STATUS)], code
        if grpc != "–":
            assert grpc == gateway.GRPC_CODE[_nearest(error, gateway.GRPC_CODE)].name, code


def _nearest(error: type[Exception], table: dict[type[Exception], object]) -> type[Exception]:
    return next(c for c in error.__mro__ if c in table)


def test_every_client_method_is_documented() -> None:
    page = (ROOT / "docs/python-client.md").read_text(encoding="utf-8")
    methods = [name for name in vars(ModelMoraClient) if name[0] != "_" and name != "close"]
    assert [name for name in methods if f"`{name}(" not in page and f" `{name}(" not in page] == []


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
