"""Statements as text: lists of any length, with few statements made for them."""

from __future__ import annotations

import pytest

from gusset.vault.storage.sql import Statement


@pytest.mark.parametrize("length", [0, 1, 15, 17, 33, 1000, 16_000, 20_000])
def test_a_list_has_its_elements_and_no_others(length: int) -> None:
    statement, parameters = Statement("SELECT 1 WHERE x IN (:list...) AND y = :y").with_lists(
        {"list": range(length), "y": "text"}
    )
    assert parameters["y"] == "text"
    assert {value for name, value in parameters.items() if name != "y"} == set(range(length))
    assert set(statement.names) == set(parameters)
    assert length or "IN (NULL)" in statement.text


def test_few_statements_are_made_for_lists_of_many_lengths() -> None:
    """Each would be prepared by every connection."""
    statement = Statement("SELECT 1 WHERE x IN (:one...) AND y IN (:other...)")
    made = {statement.with_lists({"one": range(length), "other": [1]})[0].text for length in range(1, 1000)}
    assert len(made) < 100
    for one in range(1, 40):
        for other in range(1, 40):
            statement.with_lists({"one": range(one), "other": range(other)})
    assert len(statement._by_lengths) <= 100
