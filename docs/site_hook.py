"""Hook of mkdocs: what the site has besides the pages of docs/.

The documents are written for the repository: the README is its front page, and links lead to files outside docs/. Here
the README becomes the site's first page, each file that is linked to is taken into the site under its path in the
repository, and the links are rewritten to it. A link that leads nowhere is left as it is, and fails the strict build.
The page on the Python API lists the public names of svitc, whose docstrings mkdocstrings fills in.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FRONT = {"index.md": "README.md"}  # page -> file of the repository
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")

API = {  # heading of the page on the Python API -> names in svitc
    "Compiling": ("load", "capture", "compile", "Compiled", "CompileOptions", "Compiler", "Plan", "Reporter"),
    "Images, curves and fronts": ("open_data", "sensitivity", "Sensitivity", "front", "Front"),
    "Files": ("save", "export", "verify", "Stream"),
    "Programs and passes": ("Program", "InputSpec", "Stage", "Pass", "PassResult", "Pipeline"),
    "Policies": ("Policy", "Uniform"),
    "Errors": ("SvitcError",),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, the page on the API, and every file outside docs/ that a page links to."""
    for page, source in FRONT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "api.md", content=api_page()))
    waiting = [name for name in PAGES if (ROOT / name).exists()]
    waiting += [name for page in files.documentation_pages() for name in outside(page)]
    while waiting:
        name = waiting.pop()
        if files.get_file_from_path(name) is None:
            file = File.generated(config, name, abs_src_path=str(ROOT / name))
            files.append(file)
            if file.is_documentation_page():
                waiting += outside(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from paths in the repository to paths in the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = in_repository(page.file.src_uri, link[2])
        if not (ROOT / target).is_file():
            return link[0]
        target = target.removeprefix("docs/")
        target = {source: front for front, source in FRONT.items()}.get(target, target)
        return link[1] + posixpath.relpath(target, folder or ".")

    return LINK.sub(rewritten, markdown)


def in_repository(page: str, target: str) -> str:
    """Return the path in the repository that a link of a page leads to.

    Args:
        page: path of the page in the site.
        target: as it is written in the page.
    """
    source = FRONT.get(page, page if (ROOT / page).exists() else f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def outside(file: File) -> list[str]:
    """Return the files outside docs/ that a page links to, as paths in the repository."""
    targets = [in_repository(file.src_uri, link[2]) for link in LINK.finditer(file.content_string)]
    return [
        target
        for target in targets
        if not target.startswith("docs/") and target not in FRONT.values() and (ROOT / target).is_file()
    ]


def api_page() -> str:
    """Return the page on the Python API in Markdown: a directive of mkdocstrings for each public name."""
    parts = ["# Python API", "What `import svitc` offers; [svitc from Python](python.md) has examples."]
    for heading, names in API.items():
        parts += [f"## {heading}"]
        parts += [f"::: svitc.{name}\n    options:\n      heading_level: 3" for name in names]
    return "\n\n".join(parts) + "\n"
