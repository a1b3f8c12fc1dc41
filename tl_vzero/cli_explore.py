"""tl-vzero explore: the live page. Heavy imports stay inside the command."""

import os
from typing import Annotated

import typer

from tl_vzero.cli_options import DEFAULT_MODEL, DEFAULT_TEXT, errors_in_words, say
from tl_vzero.errors import DependencyError

ONLY_HERE = ("127.0.0.1", "localhost", "::1")


def explore_command(
    text: Annotated[str, typer.Argument(help="The sentence that the page opens with.")] = DEFAULT_TEXT,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model to choose from, as for the other commands; may be repeated. No other is loaded."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A name that `tl-vzero methods` lists; may be repeated. Default: the quick ones."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, max=512, help="The longest sentence that is answered.")] = 128,
    host: Annotated[str, typer.Option(help="The address to listen at; default: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8050,
) -> None:
    """A live page: type a sentence, choose model, method, layer and token, and see the report's panels at once.

    It works offline, on this machine only unless --host says otherwise; its address holds the sentence and the choices.
    Ctrl-C ends it.
    """
    with errors_in_words():
        try:
            from tl_vzero.explore import Explorer, bound_socket, explorer_app, hosts_of, serve
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise DependencyError(
                f"the explorer needs {error.name}, which is not installed: pip install 'tl-vzero[explore]'"
            ) from error
        from tl_vzero.models.load import load_model

        with bound_socket(host, port) as bound:
            names = list(dict.fromkeys(model or [DEFAULT_MODEL]))
            explorer = Explorer(
                {name: load_model(name) for name in names}, methods=method or None, most_tokens=max_tokens
            )
            app = explorer_app(explorer, first_text=text, hosts=hosts_of(host))
            address, free_port = bound.getsockname()[:2]
            say(f"http://{f'[{address}]' if ':' in address else address}:{free_port}/  (Ctrl-C ends)")
            if host not in ONLY_HERE:
                say(f"everyone who reaches {host} can use these models", err=True)
            try:
                serve(app, bound)
            except KeyboardInterrupt:
                if not explorer.answering:
                    raise
                say("stopped; the sentence that was being computed is given up", err=True)
                # Not by an exception: Python would take torch down while a thread still computes with it.
                os._exit(130)
