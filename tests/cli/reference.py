"""Writes docs/commands.md from the commands' own help: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from genomepred.cli import cli


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ("genomepred",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands with their full names, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def reference() -> str:
    """The page."""
    parts = ["# Commands\n\nEvery command's own help (`make docs` writes this page).\n"]
    for path, command in commands():
        # click keeps a command's first help option: it is to be the one that users meet.
        names = {**cli.context_settings, "info_name": " ".join(path)}
        context = click.Context(command, terminal_width=100, **names)
        parts.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
