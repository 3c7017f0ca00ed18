"""taskbasis methods"""

from __future__ import annotations

import click

from taskbasis.cli.options import print_table


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="The tables of the docs.")
def methods(name: str | None, markdown: bool) -> None:
    """List the ways to merge task vectors, or tell all of the one called NAME."""
    import inspect

    from taskbasis.methods import catalogue, find_method

    if name is not None:
        kind = find_method(name)
        row = catalogue.entry(kind)
        click.echo(f"{row.name}: {row.formula}\n")
        click.echo((inspect.getdoc(kind) or "").partition(">>>")[0].rstrip())
        click.echo(f"\nWhen to choose it: {row.when}")
        click.echo("With default options:")
        click.echo(f"  it takes {'; '.join([row.vectors, *row.needs])};")
        click.echo(f"  it reads its inputs {row.passes} times, and holds {row.held} in memory.")
        for option, value in row.options.items():
            each = "    or one for each vector: [A,B,...]" if option in row.per_vector else ""
            click.echo(f"  --set {option}={catalogue.shown(value)}{each}")
        return
    rows = catalogue.catalogue()
    if markdown:
        click.echo(catalogue.markdown(rows), nl=False)
        return
    for family, title in catalogue.TITLES.items():
        found = [row for row in rows if row.family == family]
        if found:
            print_table(
                title,
                ["method", "passes", "needs", "computes"],
                [[row.name, str(row.passes), row.needed, row.formula] for row in found],
                left=(2, 3),
            )
    others = catalogue.of_others()
    if others:
        rows_of_others = [[name, point.value] for name, point in others.items()]
        print_table("Of other packages", ["method", "where"], rows_of_others, (1,))
