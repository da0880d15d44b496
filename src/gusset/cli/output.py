"""What commands print: text for people, JSON for programs.

Results go to standard output; notes, warnings and errors to standard error.
With `--output json`, standard output holds one JSON document and nothing else,
an error included.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from gusset.errors import CheckFailed, ConfigInvalid, GussetError, NotAcknowledged, Problem
from gusset.printable import printable, printable_json, printable_lines


class Output:
    """Prints a command's results, notes, warnings and errors. `json` selects JSON for programs."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def result(self, data: Mapping[str, Any], text: str | None = None) -> None:
        """Print the command's result: `data` as JSON for programs, `text` for people (nothing when None)."""
        if self.json:
            import json  # few commands print it

            click.echo(printable_json(json.dumps(data, default=str, ensure_ascii=False)))
        elif text is not None:
            click.echo(printable_lines(text))

    def table(
        self, key: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str
    ) -> None:
        """Print a list: `{key: rows}` as JSON; else the `columns` (field -> heading) of each row.

        A terminal gets aligned columns under headings; a pipe gets the bare
        fields between tabs, so that `cut` and `while read` work.
        """
        if self.json:
            self.result({key: list(rows)})
            return
        cells = [[_cell(row.get(field)) for field in columns] for row in rows]
        if not sys.stdout.isatty():
            for fields in cells:
                click.echo("\t".join(fields))
        elif not cells:
            click.echo(empty)
        else:
            for line in _aligned([list(columns.values()), *cells]):
                click.echo(line)

    def note(self, text: str) -> None:
        click.echo(printable_lines(text), err=True)

    def warn(self, text: str) -> None:
        click.echo(f"{click.style('warning:', fg='yellow')} {printable_lines(text)}", err=True)

    def problems(self, problems: Iterable[Problem]) -> None:
        """Print the problems that a check has found, each with its location and hint."""
        for problem in problems:
            kind = "warning" if problem.warning else "error"
            location = printable(f"{problem.location()}: ") if problem.location() else ""
            key = f"{problem.key}: " if problem.key else ""
            colour = "yellow" if problem.warning else "red"
            text = printable_lines(key + problem.message)
            click.echo(f"{location}{click.style(kind, fg=colour)}: {text}", err=True)
            if problem.hint:
                click.echo(_indented(problem.hint), err=True)

    def error(self, error: GussetError) -> None:
        """Print an error: what went wrong, and what to do next."""
        problems = error.problems if isinstance(error, ConfigInvalid | CheckFailed) else ()
        if self.json:
            data: dict[str, Any] = {"code": error.code, "message": str(error), "hint": error.hint}
            if problems:
                data["problems"] = [problem_data(problem) for problem in problems]
            if isinstance(error, NotAcknowledged):
                data["replicas"] = list(error.replicas)
            self.result(data)
            return
        self.problems(problems)
        if [problem.message for problem in problems] == [str(error)]:
            return  # the problem is printed already
        click.echo(f"{click.style('error:', fg='red')} {printable_lines(str(error))}", err=True)
        if error.hint:
            click.echo(_indented(error.hint), err=True)


def problem_data(problem: Problem) -> dict[str, Any]:
    """A problem as JSON data."""
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "key": problem.key,
        "severity": "warning" if problem.warning else "error",
    }


def _indented(hint: str) -> str:
    return "\n".join(f"  {line}" for line in printable_lines(hint).splitlines())


def _cell(value: object) -> str:
    return "-" if value is None else printable(str(value))


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
