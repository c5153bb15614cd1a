"""A hook of mkdocs.yml: README.md is the site's first page, and pages may link out of docs/.

On the forge a link names a file of the repository. On the site, pages of docs/ stand at the top;
README.md and whatever else is linked to are put beside them, and links say where they are then.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = "index.md"
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)]*)?(\))")
"""A link to another file: text before, target, anchor, text after."""


def repository_place(page: str) -> str:
    """Where a page of the site lies in the repository."""
    if page == HOME:
        return "README.md"
    inside = f"docs/{page}"
    return inside if (ROOT / inside).is_file() else page


def site_place(file: str) -> str:
    """Where a file of the repository lies on the site."""
    return HOME if file == "README.md" else file.removeprefix("docs/")


def linked(text: str, file: str) -> list[str]:
    """Files of the repository to which the text of `file` links."""
    folder = posixpath.dirname(file)
    found = (posixpath.normpath(posixpath.join(folder, match[2])) for match in LINK.finditer(text))
    return list(dict.fromkeys(found))


def for_the_site(text: str, page: str) -> str:
    """The text with its links as the site has them."""
    folder = posixpath.dirname(repository_place(page))

    def moved(match: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(folder, match[2]))
        target = posixpath.relpath(site_place(file), posixpath.dirname(page) or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    return LINK.sub(moved, text)


def on_files(files: Any, config: Any) -> Any:
    """Add README.md, and what pages link to outside docs/, from page to page."""
    from mkdocs.structure.files import File

    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        path = ROOT / name
        if not name.startswith("docs/"):
            place = site_place(name)
            files.append(File.generated(config, place, abs_src_path=str(path)))
        if path.suffix == ".md":
            new = [file for file in linked(path.read_text(), name) if (ROOT / file).is_file()]
            waiting += [file for file in new if file not in seen and not file.startswith("docs/")]
            seen.update(new)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return for_the_site(markdown, page.file.src_uri)
