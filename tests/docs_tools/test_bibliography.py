"""Citations become links, the bibliography lists what is cited, and a citation of nothing fails."""

import re

import pytest

exceptions = pytest.importorskip("mkdocs.exceptions")

from docs_tools import bibliography  # noqa: E402

KEYS = list(bibliography.works())
PAGES = ("index.md", "nn/conv.md")


@pytest.mark.parametrize(
    ("citation", "text"),
    [
        ("[@zeiler2012]", "Zeiler, 2012"),
        ("[@kingma2015]", "Kingma and Ba, 2015"),
        ("[@reddi2018]", "Reddi et al., 2018"),
        ("[@liu2025]", "Liu et al., 2025"),
        ("[@gal2016b]", "Gal and Ghahramani, 2016b"),
        ("[@kingma2015, algorithm 1]", "Kingma and Ba, 2015, algorithm 1"),
        ("[@kingma2015,\nsection 2, $\\hat\\epsilon$]", "Kingma and Ba, 2015, section 2, $\\hat\\epsilon$"),
    ],
)
def test_a_citation_is_names_year_and_place(citation, text):
    key = re.findall(r"\w+", citation)[0]
    assert bibliography.cite(f"As in {citation}.", "index.md") == f"As in [{text}](bibliography.md#{key})."


@pytest.mark.parametrize(
    ("page", "target"),
    [("index.md", "bibliography.md"), ("nn/conv.md", "../bibliography.md"), ("a/b/c.md", "../../bibliography.md")],
)
def test_the_link_is_relative_to_the_page(page, target):
    assert bibliography.cite("[@kingma2015]", page) == f"[Kingma and Ba, 2015]({target}#kingma2015)"


@pytest.mark.parametrize("citation", ["[@nobody1999]", "[@kingma2014]", "[@kingma2015 algorithm 1]", "[@]"])
@pytest.mark.parametrize("read", [bibliography.cite, lambda markdown, page: list(bibliography.keys(markdown, page))])
def test_an_unknown_key_fails_with_page_and_key(citation, read):
    with pytest.raises(exceptions.PluginError, match=re.escape(f"nn/conv.md: {citation}")):
        read(citation, "nn/conv.md")


def test_an_unknown_key_is_told_what_it_is_like():
    with pytest.raises(exceptions.PluginError, match="did you mean kingma2015"):
        bibliography.cite("[@kingma2014]", "index.md")


@pytest.mark.parametrize(
    "code",
    [
        "```python\nx[@kingma2015]\n```\n",
        "````md\n```\n[@nobody1999]\n```\n[@kingma2015]\n````\n",
        "~~~\n[@kingma2015]\n~~~\n",
        "    ```\n    [@kingma2015]\n    ```\n",
        '``` python title="x"\n[@kingma2015]\n```',
        "```\n[@kingma2015], and the fence is never closed\n",
        "`[@kingma2015]`",
        "`` ` [@kingma2015] ``",
        "`two lines\nof [@nobody1999]`",
    ],
)
def test_code_is_left_alone(code):
    assert bibliography.cite(code, "index.md") == code
    assert not list(bibliography.keys(code, "index.md"))
    assert "[Kingma and Ba" in bibliography.cite(f"{code}\n\n[@kingma2015]", "index.md") or "never closed" in code


def test_a_lone_backtick_hides_nothing():
    markdown = "A ` and [@kingma2015].\n\nAnother `."
    assert "bibliography.md#kingma2015" in bibliography.cite(markdown, "index.md")


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "nn").mkdir()
    (tmp_path / "index.md").write_text("# Home\n\n[@zeiler2012] and [@kingma2015], [@kingma2015, algorithm 1]\n")
    (tmp_path / "nn" / "conv.md").write_text("---\ntitle: Convolution\n---\n# Not this\n\n[@kingma2015] `[@he2015]`\n")
    return tmp_path


def test_all_pages_are_scanned(docs):
    assert bibliography.citations(docs) == {
        "kingma2015": [("Home", "index.md"), ("Convolution", "nn/conv.md")],
        "zeiler2012": [("Home", "index.md")],
    }


def test_what_is_cited_is_listed_once_and_the_rest_is_named(docs):
    used = bibliography.citations(docs)
    adam, adadelta = bibliography.page(used).splitlines()
    assert adam.startswith('- <span id="kingma2015"></span>Diederik P. Kingma and Jimmy Ba (2015). [Adam: ')
    assert adam.endswith("Cited on: [Home](index.md), [Convolution](nn/conv.md).")
    assert "https://arxiv.org/abs/1412.6980" in adam
    assert "version 9" in adam
    assert 'id="zeiler2012"' in adadelta
    assert set(bibliography.uncited(used)) == set(KEYS) - set(used)


def test_entries_are_sorted_by_name_then_year():
    listed = re.findall(r'id="(\w+)"', bibliography.page({key: [("Home", "index.md")] for key in reversed(KEYS)}))
    assert sorted(listed) == sorted(KEYS)
    names = [re.match("[a-z]+", key)[0] for key in listed]
    assert names == sorted(names)
    assert listed.index("polyak1964") < listed.index("polyak1992")
    assert listed.index("muller2018") < listed.index("nair2010")
    assert listed.index("gal2016a") < listed.index("gal2016b")


def test_keys_are_in_order():
    assert sorted(KEYS) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_work_is_whole(key):
    work = bibliography.works()[key]
    assert work.keys() <= {"authors", "year", "title", "venue", "url", "note", "places"}
    assert work["authors"]
    assert all(author == author.strip() != "" for author in work["authors"])
    assert bibliography.OTHERS not in work["authors"][:-1]
    assert 1900 < work["year"] < 2100
    assert work["title"]
    assert not set("[]*_<`") & set(work["title"] + work.get("venue", "") + work.get("note", ""))
    assert re.fullmatch(r"https://[^\s<>]+", work.get("url", "https://none"))
    assert all(place and what for place, what in work.get("places", {}).items())


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_family_name_and_year(key):
    name = bibliography.order(key)[0][0].replace(" ", "")
    assert re.fullmatch(rf"{re.escape(name)}{bibliography.works()[key]['year']}[a-z]?", key)


def test_a_letter_tells_two_of_a_year_apart():
    labels = [bibliography.label(key) for key in KEYS]
    assert len(set(labels)) == len(labels)


def test_a_family_name_keeps_its_small_words():
    assert bibliography.family("Twan van Laarhoven") == "van Laarhoven"
    assert bibliography.family("Diederik P. Kingma") == "Kingma"
