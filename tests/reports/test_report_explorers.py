import base64
from pathlib import Path

import numpy as np
from nbformat.v4 import new_code_cell, new_notebook, new_output

from kaconv.attention.record import AttentionRecord
from kaviz.explorer.export import fragment
from kaviz.explorer.views import view_pack
from kaviz.reports.explorers import put_explorers, take_explorers
from kaviz.reports.page import notebook_html
from kaviz.reports.static import STATE, VIEW, freeze_widgets


def notebook(buffers):
    state = {"_anywidget_id": "kaviz.explorer.widget.AttentionExplorer", "state": {"find": "<script>"}}
    data = {VIEW: {"model_id": "one"}, "text/plain": "AttentionExplorer(...)"}
    cells = [new_code_cell("explorer", outputs=[new_output("display_data", data=data)])]
    made = new_notebook(cells=cells)
    made.metadata.widgets = {STATE: {"state": {"one": {"model_name": "AnyModel", "state": state, "buffers": buffers}}}}
    return made


def test_an_explorer_lives_on_in_the_page():
    pack = view_pack(AttentionRecord({"layer": np.full((2, 3, 3, 4), 1 / 9, np.float32)}))
    made = notebook([{"path": ["view_data"], "data": base64.b64encode(pack).decode(), "encoding": "base64"}])
    taken = take_explorers(made)
    freeze_widgets(made)
    html, _ = notebook_html(made, Path())
    assert "<script" not in html
    html = put_explorers(html, taken)
    assert html.count(fragment([pack], {"find": "<script>"})) == 1
    assert html.count("<script") == 1


def test_an_explorer_without_its_numbers_is_left_out():
    made = notebook([])
    assert take_explorers(made) == {}
    freeze_widgets(made)
    assert "AttentionExplorer" not in notebook_html(made, Path())[0]
