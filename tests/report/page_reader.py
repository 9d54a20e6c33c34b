"""What a browser would make of a page, and texts that try to take it over."""

from html.parser import HTMLParser

HOSTILE = {
    "script": "</p></details><script>alert(1)</script><img src=x onerror=alert(1)>",
    "template": "{{ 7 * 7 }}{% for x in y %}{{ config }}",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "style": "</style><style>body{display:none}</style>",
    "comment": "<!-- ]]> --!> <svg onload=alert(1)>",
    "controls": "a\x00b\x07c\x1b[31md\x7fe\x85f\ufefff\ufffeg",
    "right to left": "\u202egpj.exe \u2066hidden\u2069 \u05e9\u05dc\u05d5\u05dd",
    "empty": "",
    "blank": " \n\t ",
    "emoji": "👩‍👩‍👧 fine \U000e0041 \U0001f600",
}


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.misnested: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.tags if found == tag]
