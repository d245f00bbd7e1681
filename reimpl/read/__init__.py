"""Reading: the questions that the documentation answers, and our source beside torch's, in the terminal.

`reimpl read optim.SGD` shows a rule beside torch's source, `reimpl read "dampening"` prints the answer to a question,
and `reimpl read drift` says which of torch's functions are no longer those that the pages quote.
"""

from reimpl.read.drift import Change, changes
from reimpl.read.pages import Question, questions, search
from reimpl.read.quote import QuoteError, Source, Step, align, source

__all__ = ["Change", "Question", "QuoteError", "Source", "Step", "align", "changes", "questions", "search", "source"]
