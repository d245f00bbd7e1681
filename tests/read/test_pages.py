"""Questions are read from the pages, and found in the words in which people ask."""

import pytest

from reimpl.read import questions, search
from reimpl.read.pages import pages, plain, sections

PAGE = """# A page

## Questions

### Is `x` seven? { #seven }

Asked as: why seven · pytorch seven · pytorch/pytorch#777

!!! answer
    It is [7]{= 3 + 4}, see {torch: torch.optim.sgd._single_tensor_sgd | nesterov} and [this](other.md).

More words.

```python run
### not a heading
```

### No answer here { #none }

Words.
"""


def test_a_question_has_its_phrases_and_its_answer():
    (question,) = questions({"optim/a.md": PAGE})
    assert question.address == "optim/a/#seven"
    assert question.asked == ("why seven", "pytorch seven")
    assert question.answer == "It is 7, see torch.optim.sgd._single_tensor_sgd and this."


def test_a_fence_is_no_heading():
    assert [section.anchor for section in sections(PAGE) if section.anchor] == ["seven", "none"]
    assert "".join(section.text for section in sections(PAGE)) == PAGE


def test_prose_reads_without_marks():
    assert plain("[0.5]{= x:.1f} of [@kingma2015, algorithm 1]") == "0.5 of kingma 2015, algorithm 1"


# As users type them: not the headings' own words.
TYPED = {
    "dampening": "optim/sgd/#dampening",
    "what does dampening do": "optim/sgd/#dampening",
    "sgd momentum differs from keras": "optim/sgd/#paper-form",
    "does weight decay apply to bias": "optim/sgd/#weight-decay",
    "is the nesterov formula wrong": "optim/sgd/#nesterov",
    "which optimizer should i use": "optim/#which",
}


@pytest.mark.parametrize("typed", TYPED)
def test_the_right_question_is_found_first(typed):
    assert search(typed)[0].address == TYPED[typed]


def test_nothing_is_found_for_words_that_no_page_has():
    assert search("zxqv") == []


def test_every_short_answer_can_be_read_in_a_terminal():
    found = questions()
    assert len(found) > 100
    for question in found:
        assert not set("$\\") & set(question.answer), question.address
        assert len(question.answer) < 700, question.address


def test_anchors_are_unique_on_their_page():
    for page in pages():
        anchors = [question.anchor for question in questions({page: pages()[page]})]
        assert len(anchors) == len(set(anchors)), page
