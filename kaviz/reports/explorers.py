"""Explorers that a notebook shows, alive in its page: their numbers come from the widget state that the run saved."""

import secrets
from contextlib import suppress

from nbformat import NotebookNode

from kaviz.explorer.export import is_explorer, saved_fragment
from kaviz.reports.static import STATE, VIEW


def take_explorers(notebook: NotebookNode) -> dict[str, str]:
    """Replace, in place, the view of each explorer among the outputs by a word that stands for it.

    Returns:
        For each such word the explorer's HTML, which `put_explorers` puts there once all else has been made harmless.
        The words are random: nothing in a notebook can name one.
    """
    models = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    taken = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            model = models.get(output.get("data", {}).get(VIEW, {}).get("model_id"), {})
            if is_explorer(model):
                with suppress(ValueError):  # its numbers have not been saved
                    word = f"explorer-{secrets.token_hex(8)}"
                    taken[word] = saved_fragment(model)
                    del output.data[VIEW]
                    output.data["text/html"] = f"<p>{word}</p>"
    return taken


def put_explorers(html: str, taken: dict[str, str]) -> str:
    """The page's HTML with each explorer in place of the word that stands for it."""
    for word, explorer in taken.items():
        html = html.replace(f"<p>{word}</p>", explorer)
    return html
