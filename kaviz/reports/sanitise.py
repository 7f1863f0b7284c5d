"""The contents that a page admits: allow-lists for what notebooks and specs bring, and the page's policy."""

import re
from collections.abc import Iterable

import nh3
from bs4 import BeautifulSoup
from bs4.element import Tag
from soupsieve import SelectorSyntaxError

# fmt: off
_TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "center", "cite", "code", "col", "colgroup", "dd", "del",
    "details", "dfn", "div", "dl", "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i",
    "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "section", "small", "span", "strike",
    "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul", "var", "wbr",
}
# fmt: on
_ATTRIBUTES = {
    "*": {"aria-label", "class", "dir", "id", "lang", "role", "style", "title"},
    "a": {"href"},
    "details": {"open"},
    "img": {"alt", "height", "src", "width"},
    "ol": {"start"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan", "scope"},
}
# fmt: off
# None of them takes a url() or moves a thing out of its place on the page.
_STYLES = {
    "background-color", "border", "border-bottom", "border-collapse", "border-left", "border-radius", "border-right",
    "border-top", "caption-side", "color", "display", "flex", "flex-wrap", "font-family", "font-size", "font-style",
    "font-variant-numeric", "font-weight", "gap", "height", "line-height", "margin", "margin-bottom", "margin-left",
    "margin-right", "margin-top", "max-height", "max-width", "min-width", "opacity", "padding", "padding-bottom",
    "padding-left", "padding-right", "padding-top", "text-align", "text-decoration", "text-transform",
    "vertical-align", "white-space", "width",
}
# fmt: on
# What is written within these is no text of theirs; of all other unknown tags the text stays.
_GONE_WITH_CONTENT = {"audio", "iframe", "math", "noscript", "object", "script", "style", "svg", "template", "video"}
IMAGE_SOURCE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]*")
_LINK = re.compile(r"(?:https?:|mailto:|#|[^:]*$)", re.IGNORECASE)
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")


def sanitise(html: str, id_prefix: str = "") -> str:
    """HTML that can run nothing and load nothing: tags, attributes, styles and addresses of allow-lists only.

    Images keep embedded data, links keep http, https, mailto and places within the project. What a notebook shows as
    SVG is safe as the source of an <img>, where browsers run no scripts; inline <svg> is dropped.

    Args:
        id_prefix: put before every id and before links to one, where several notebooks share a page.
    """

    def admitted(tag: str, name: str, value: str) -> str | None:
        if (tag, name) == ("img", "src"):
            return value if IMAGE_SOURCE.fullmatch(value) else None
        if name == "href":
            link = value if _LINK.match(value.strip()) else None
            return f"#{id_prefix}{link[1:]}" if link and link.startswith("#") else link
        return value

    return nh3.clean(
        _inline_styles(html),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=admitted,
        clean_content_tags=_GONE_WITH_CONTENT,
        filter_style_properties=_STYLES,
        id_prefix=id_prefix or None,
        link_rel="noopener noreferrer",
        url_schemes={"data", "http", "https", "mailto"},
    )


def _inline_styles(html: str) -> str:
    """Move rules for parts of one element, as pandas' Styler writes them into a <style>, to what they are for."""
    if "<style" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    for sheet in soup.find_all("style"):
        for selectors, declarations in _RULE.findall(sheet.get_text()):
            for selector in (part.strip() for part in selectors.split(",")):
                for element in _selected(soup, selector):
                    before = str(element.get("style", "")).strip().rstrip(";")
                    element["style"] = "; ".join(filter(None, (before, " ".join(declarations.split()))))
        sheet.decompose()
    return str(soup)


def _selected(soup: BeautifulSoup, selector: str) -> Iterable[Tag]:
    if not selector.startswith("#"):
        return []  # rules for all of a page would undo the page's own
    try:
        return soup.select(selector)
    except (SelectorSyntaxError, NotImplementedError):
        return []


def content_security_policy(*script_hashes: str) -> str:
    """The policy of a page: nothing from elsewhere, and no script but those with these hashes ("sha256-...")."""
    scripts = " ".join(f"'{digest}'" for digest in script_hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
