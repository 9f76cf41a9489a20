"""`dashboard`: pages for a browser."""

from __future__ import annotations

import click

from batchscribe.cli.app import App, pass_app


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8765, show_default=True, help="Port.")
@click.option("--token", help="Token that every request needs, instead of BATCH_DASHBOARD_TOKEN.")
@pass_app
def dashboard(app: App, *, host: str, port: int, token: str | None) -> None:
    """Serve pages for a browser until interrupted.

    On an address that other machines reach, every request needs a token.
    """
    from batchscribe.dashboard.server import serve

    if token:
        app.flags["BATCH_DASHBOARD_TOKEN"] = token
    app.require_state_folder("use `batchscribe status` and `batchscribe report --format html`")
    app.warn_of_names()
    serve(app.settings, host=host, port=port, announce=lambda url: app.console.print(url, markup=False))
