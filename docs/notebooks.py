"""Notebooks as pages of the site: what was written, what was run and what it printed, with the pictures inside the page."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls this with the files of docs/: each notebook gets a page of the same name."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = Path(str(file.abs_src_path)).read_text(encoding="utf-8")
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=as_markdown(text)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """MkDocs calls this with the text of each page: in the repository links lead to notebooks, here to their pages."""
    return re.sub(r"\]\(([\w/.]+)\.ipynb\)", r"](\1.md)", markdown)


def as_markdown(notebook: str) -> str:
    """A notebook of format 4 as a page."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    for kind in ("image/jpeg", "image/png"):
        if kind in data:
            return f"![picture made by the cell above](data:{kind};base64,{''.join(data[kind]).replace(chr(10), '')})"
    if "text/html" in data:
        return re.sub(r"<style.*?</style>\s*", "", "".join(data["text/html"]), flags=re.DOTALL)
    text = "".join(output.get("text") or data["text/plain"]).strip()
    fence = max(["``", *re.findall("`+", text)], key=len) + "`"  # longer than any that a command printed
    return f"{fence}text\n{text}\n{fence}"
