"""The site takes in what its pages link to, and its page on the Python API has every public name.

That links and anchors lead somewhere is checked by `make docs`, which `make test` runs.
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType, SimpleNamespace

import pytest

import svitc
from support.paths import ROOT


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The hook of mkdocs, which is no part of a package."""
    spec = spec_from_file_location("site_hook", ROOT / "docs" / "site_hook.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference(hook):
    names = [name for names in hook.API.values() for name in names]
    assert sorted(names) == svitc.__all__


@pytest.mark.parametrize(
    ("page", "link", "rewritten"),
    [
        ("index.md", "docs/data.md", "data.md"),
        ("index.md", "benchmarks/results/zoo.md", "benchmarks/results/zoo.md"),
        ("how-it-works.md", "../CONTRIBUTING.md", "CONTRIBUTING.md"),
        ("families.md", "../README.md#install", "index.md#install"),
        ("CONTRIBUTING.md", "docs/passes.md", "passes.md"),
        ("benchmarks/results/zoo.md", "../../docs/data.md", "../../data.md"),
        ("data.md", "nothing.md", "nothing.md"),
        ("data.md", "https://onnxruntime.ai/", "https://onnxruntime.ai/"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hook, page, link, rewritten):
    where = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hook.on_page_markdown(f"see [x]({link}).", where, None, None) == f"see [x]({rewritten})."
