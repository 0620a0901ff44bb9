import pytest

from jserve.server.stop_strings import StopFinder


def pieces(finder: StopFinder, text: str, size: int) -> str:
    shown = [finder.push(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join(shown) + finder.flush()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ([], "all of it", "all of it"),
        (["END"], "one ENDtwo", "one "),
        (["END"], "EEENEND", "EEEN"),
        (["aab"], "aaab", "a"),
        (["xyz"], "never", "never"),
        (["xyz"], "ends in xy", "ends in xy"),
        (["abcd", "bc"], "zabcd", "za"),
        (["cd", "abcd"], "zabcd", "z"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
    ],
)
def test_text_is_cut_before_the_first_stop(stops, text, expected, size):
    assert pieces(StopFinder(stops), text, size) == expected


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_stop_may_be_kept(size):
    assert pieces(StopFinder(["END"], keep_stop=True), "one ENDtwo", size) == "one END"


def test_only_what_may_become_a_stop_is_held_back():
    finder = StopFinder(["stop"])
    assert finder.push("a s") == "a "
    assert finder.push("t") == ""
    assert finder.push("ar") == "star"
    assert finder.found is None
    assert finder.push("stopped") == ""
    assert finder.found is not None
    assert finder.push("more") == finder.flush() == ""
