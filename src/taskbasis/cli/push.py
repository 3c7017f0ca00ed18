"""taskbasis push"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from taskbasis.cli.options import warn
from taskbasis.units import bytes_text


@click.command()
@click.argument("folder")
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Only you and your organisation may see it.")
@click.option("--revision", help="The branch to send to; made where there is none. [default: main]")
@click.option("--dry-run", is_flag=True, help="List what would be sent; nothing is.")
def push(folder: str, repo_id: str, private: bool, revision: str | None, dry_run: bool) -> None:
    """Send FOLDER to the repository REPO_ID of the Hugging Face hub, as owner/name.

    The repository is made where it does not exist. Files of the same names are replaced there,
    others stay. Hidden files are not sent, and links that lead out of FOLDER are refused. Log in
    first, with `hf auth login`.
    """
    from taskbasis.io.upload import files_to_send, hidden_files, repo_to_send_to, upload

    repo = repo_to_send_to(repo_id)
    files = files_to_send(folder)
    _check_opens(folder)
    if "README.md" not in files:
        warn(f"{folder} has no README.md; the hub will show no card of it")
    for path in list(_own_paths(Path(folder)))[:1]:
        warn(f"its recipe names paths of this machine, such as {path}; they will be seen there")
    if not dry_run:
        click.echo(f"sent to {upload(folder, repo, private=private, revision=revision)}")
        return
    for name, size in files.items():
        click.echo(f"{bytes_text(size):>10}  {name}")
    for name in hidden_files(folder):
        click.echo(f"{'not sent':>10}  {name} (hidden)")
    where = f"{repo}@{revision}" if revision else repo
    total = f"{len(files)} file{'s' * (len(files) > 1)}, {bytes_text(sum(files.values()))}"
    click.echo(f"{total}, would be sent to {where}{' (private)' if private else ''}")


def _check_opens(folder: str) -> None:
    """Refuse what could not be opened again."""
    from taskbasis.io.adapter import is_adapter, open_adapter
    from taskbasis.io.folder import open_tensors

    if is_adapter(folder):
        open_adapter(folder)
    else:
        open_tensors(folder)


def _own_paths(folder: Path) -> Iterator[str]:
    """Absolute paths that the recipe in a folder names."""
    from taskbasis.errors import FileError
    from taskbasis.io.regular import read_json
    from taskbasis.sidefiles import RECIPE_FILE

    try:
        recipe = read_json(folder / RECIPE_FILE)
    except FileError:
        return  # none, or not one of ours
    yield from (text for text in _texts(recipe) if text.startswith("/"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
