"""What a page of a list costs the database: the same wherever the page is and whatever is asked for, so that
nothing slows down as rows pile up. Counted is what the database does, not how long it takes.
"""

from __future__ import annotations

from platform_server.state_folder import Platform
from tests.platform_server.api import Api
from tests.platform_server.history import fill
from tests.platform_server.questions import QUESTIONS
from tests.platform_server.work import work

PUBLICATIONS = EVENTS = 20_000
# For 51 rows; whoever goes through an index of them all does many times as much.
INSTRUCTIONS, READ = 3000, 300


def test_a_page_costs_the_same_wherever_it_is(api: Api, platform: Platform) -> None:
    history = fill(platform, PUBLICATIONS, EVENTS)
    most = INSTRUCTIONS if platform.database.is_sqlite else READ
    slow = {}
    for name, asks in QUESTIONS.items():
        question = asks(history)
        with work(platform.database) as done:
            if question.body is None:
                data = api.get(question.path, **question.query)
            else:
                data = api.post(question.path, question.body)
        assert len(data[question.name]) == question.rows, name
        assert done, name
        cost = max(each.cost for each in done)
        if cost > most:
            slow[name] = cost
    assert slow == {}
