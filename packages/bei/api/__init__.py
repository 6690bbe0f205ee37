"""Every route for every host: a Call in, a Reply out. There is no web framework, so every host gives the same bytes."""

from bei.api.answering import admit, answer, error_reply, lost, refuse
from bei.api.background import answer_line
from bei.api.call import Call
from bei.api.reply import FileContent, Reply
from bei.api.routes import Route
from bei.api.table import ROUTES

__all__ = [
    "ROUTES",
    "Call",
    "FileContent",
    "Reply",
    "Route",
    "admit",
    "answer",
    "answer_line",
    "error_reply",
    "lost",
    "refuse",
]
