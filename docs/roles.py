"""Cross-references of the docstrings as a reader expects them: ``:class:`~a.b.Name` `` becomes ``Name``."""

import re

ROLE = re.compile(r":(?:class|func|meth|mod|attr):<code>(~?)([\w.]+)</code>")


def on_page_content(html: str, **_: object) -> str:
    """MkDocs calls this with the body of each page."""
    return ROLE.sub(lambda match: f"<code>{match[2].rpartition('.')[2] if match[1] else match[2]}</code>", html)
