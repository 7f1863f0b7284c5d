import base64
import re

import numpy as np
import pytest
from records import packs_in
from test_views import record

from kaviz import export_explorer
from kaviz.explorer.export import fragment, front_end, hash_of, saved_fragment
from kaviz.explorer.views import view_pack


def test_the_page_holds_the_numbers_and_admits_its_own_module_alone(tmp_path):
    maps = {"Grad-CAM": np.ones((5, 8, 8))}
    positions = {"ablation": {"b": np.ones((5, 3, 3))}}
    path = export_explorer(record(), tmp_path / "new/view.html", attributions=maps, positions=positions, title="a <b>")
    page = path.read_text(encoding="utf-8")
    assert [pack["kind"] for pack in packs_in(page)] == ["view", "attribution", "positions"]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "default-src 'none'" in policy
    assert f"script-src '{hash_of(script)}';" in policy
    assert f"style-src '{hash_of(style)}';" in policy
    assert "unsafe" not in policy
    assert "<title>a &lt;b&gt;</title>" in page
    assert not re.search(r"(src|href)=", page.replace(script, ""))


def test_the_module_can_stand_inside_a_page():
    front = front_end()
    assert "</script" not in front.script
    assert "</style" not in front.style
    for loads in ("import ", "import(", "fetch(", "http://", "https://", "innerHTML", "eval("):
        assert loads not in front.script.replace("http://www.w3.org/2000/svg", ""), loads


def test_what_is_chosen_at_first_is_escaped():
    assert 'data-state="{&quot;find&quot;: &quot;&lt;b&gt;&quot;}"' in fragment([b""], {"find": "<b>"})


def test_nothing_is_written_of_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="5 samples, but Grad-CAM has 4"):
        export_explorer(record(), tmp_path / "view.html", attributions={"Grad-CAM": np.ones((4, 8, 8))})
    assert not any(tmp_path.iterdir())


def test_a_saved_widget_becomes_a_page_s_fragment():
    view = view_pack(record())
    buffers = [
        {"path": path, "data": base64.b64encode(content).decode(), "encoding": "base64"}
        for path, content in [(["extra_data", 0], b"x"), (["view_data"], view)]
    ]
    state = {"_anywidget_id": "kaviz.explorer.widget.AttentionExplorer", "state": {"b": 2}}
    assert saved_fragment({"state": state, "buffers": buffers}) == fragment([view, b"x"], {"b": 2})
    with pytest.raises(ValueError, match="without its numbers"):
        saved_fragment({"state": state})
    with pytest.raises(ValueError, match="no AttentionExplorer"):
        saved_fragment({"state": {}})
