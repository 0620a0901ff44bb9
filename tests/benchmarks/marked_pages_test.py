"""Pages with marked places, and results that can be compared line by line."""

import json

from benchmarks.marked_pages import entry_a_line, fill_page, markdown


def test_a_page_keeps_its_words_and_gets_its_tables() -> None:
    page = (
        "before\n<!-- table: seeds -->\nold\n<!-- end of table -->\nbetween\n"
        "<!-- table: ttft-buckets -->\nkept\n<!-- end of table -->\nafter\n"
    )
    filled = fill_page(page, {"seeds": "| new |"})
    assert filled == (
        "before\n<!-- table: seeds -->\n\n| new |\n\n<!-- end of table -->\nbetween\n"
        "<!-- table: ttft-buckets -->\nkept\n<!-- end of table -->\nafter\n"
    )
    assert fill_page(filled, {"seeds": "| new |"}) == filled


def test_a_table_has_a_rule_that_aligns_numbers() -> None:
    assert markdown(["name", "s"], [["fcfs", "1.5"]]) == (
        "| name | s |\n| --- | --: |\n| fcfs | 1.5 |"
    )


def test_results_have_an_entry_a_line() -> None:
    report = {"commit": "abc", "cells": [{"x": 1}, {"x": 2}], "none": []}
    text = entry_a_line(report).decode()
    assert json.loads(text) == report
    assert '  {"x": 1},\n  {"x": 2}\n' in text
