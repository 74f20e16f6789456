"""The generated pages are current, the shipped configurations resolve, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.configuration import load_config
from flows.documentation import pages

ROOT = Path(__file__).parents[1]
WRITTEN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*.md")])


def test_generated_pages_are_current():
    for page, text in pages().items():
        assert page.read_text(encoding="utf-8") == text, "run python -m flows.documentation"


@pytest.mark.parametrize("name", ["demo.yaml", "refresh.yaml"])
def test_shipped_configurations_resolve(name):
    load_config(ROOT / "configs" / name)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_relative_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
