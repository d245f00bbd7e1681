"""A function of torch's that is no longer the one that the pages quote is found, and the difference shown."""

import dataclasses
import importlib

import pytest

from reimpl.read import drift, pages, quote

PATH = "torch.optim.sgd._single_tensor_sgd"
written_for = drift.kept()["torch"]
same_version = pytest.mark.skipif(quote.TORCH_VERSION != written_for, reason=f"the pages are written for {written_for}")


def test_everything_quoted_has_a_digest():
    assert drift.missing(pages.pages()) == []


@same_version
def test_nothing_has_changed_in_the_version_that_the_pages_are_written_for():
    assert list(drift.changes()) == []


@same_version
def test_a_changed_line_is_shown(monkeypatch):
    of = quote.source(PATH)
    at = of.find("if nesterov:")
    changed = dataclasses.replace(of.lines[at], text="            if not nesterov:")
    other = dataclasses.replace(of, lines=(*of.lines[:at], changed, *of.lines[at + 1 :]))
    monkeypatch.setattr(drift, "source", lambda path: other if path == PATH else quote.source(path))
    (change,) = drift.changes()
    assert change.path == PATH
    assert "optim/sgd.md" in change.pages
    assert "+             if not nesterov:" in change.lines
    assert sum(line.startswith("- ") for line in change.lines) == 1
    assert any(line.startswith(f"@@ line {at - 2} ") for line in change.lines)


@same_version
def test_a_function_that_is_gone_is_named(monkeypatch):
    monkeypatch.delattr(importlib.import_module("torch.optim.sgd"), "_single_tensor_sgd")
    quote.source.cache_clear()
    changes = {change.path: change.lines for change in drift.changes()}
    monkeypatch.undo()
    quote.source.cache_clear()
    assert changes == {PATH: (f"! there is nothing called {PATH}",)}
