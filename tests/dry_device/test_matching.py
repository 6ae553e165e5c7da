"""Every rank of a layout says what the others wait for: NCCL would hang, or mix up messages, where one does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

Message = dict[str, Any]
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor, interleaved stages, replicas": {
        "tensor": 2,
        "pipeline": 2,
        "virtual": 2,
        "data": 2,
        "sequence": True,
        "micro_batches": 4,
    },
    "stages, shared sequences": {"pipeline": 2, "context": 2, "micro_batches": 3},
}


def messages(case: dict[str, Any]) -> list[Message]:
    """All of a rank, in their order."""
    return [message for part in case["parts"].values() for message in part["messages"]]


def differences(ranks: list[list[Message]]) -> list[str]:
    """Where the ranks of a group do not do the same in the same order, or what is sent is not what is awaited."""
    collective: dict[Any, list[list[Any]]] = defaultdict(list)
    sent, awaited = defaultdict(list), defaultdict(list)
    for rank, said in enumerate(ranks):
        own: dict[Any, list[Any]] = defaultdict(list)
        for message in said:
            what = (message["operator"], message["bytes"], message["dtype"])
            if "peer" not in message:
                own[message["group"], tuple(message["ranks"])].append(what)
            elif message["operator"] == "send":
                sent[rank, message["peer"], message["group"]].append(what[1:])
            else:
                awaited[message["peer"], rank, message["group"]].append(what[1:])
        for group, what in own.items():
            collective[group].append(what)
    found = [
        f"{group}: only {len(lists)} of its ranks say anything"
        for group, lists in collective.items()
        if len(lists) != len(group[1])
    ]
    found += [
        f"{group}: {one} and {lists[0]}" for group, lists in collective.items() for one in lists if one != lists[0]
    ]
    pairs = sorted({*sent, *awaited})
    return found + [
        f"{pair}: sent {sent[pair]}, awaited {awaited[pair]}" for pair in pairs if sent[pair] != awaited[pair]
    ]


@pytest.fixture(scope="module", params=LAYOUTS)
def ranks(request: pytest.FixtureRequest, run_case: Callable[..., Any]) -> list[list[Message]]:
    cases = run_case("70m", layers=4, length=256, every_rank=True, **LAYOUTS[request.param])
    assert [case["problems"] for case in cases] == [{}] * len(cases)
    return [messages(case) for case in cases]


def test_ranks_agree_on_their_messages(ranks: list[list[Message]]) -> None:
    assert differences(ranks) == []
    assert {message["group"] for said in ranks for message in said} >= {"pp", "dp_cp", "world"}


def test_a_message_that_one_rank_leaves_out_is_found(ranks: list[list[Message]]) -> None:
    first = {message["operator"]: place for place, message in reversed(list(enumerate(ranks[1])))}
    assert len(first) > 3
    for operator, place in first.items():
        assert differences([ranks[0], ranks[1][:place] + ranks[1][place + 1 :], *ranks[2:]]), operator
