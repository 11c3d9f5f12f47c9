"""Scorers read what an answer says: tables of hard cases, and properties."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectune.errors import DataError, InputError, NoMatch
from selectune.evaluation.clock import find_time
from selectune.evaluation.numerals import NUMBER_WORDS, find_numbers
from selectune.evaluation.scorers import SCORERS, Reference, find_letter, find_number, find_yes_no, scorer, scorer_name


def ref(*answers: str, choices: tuple[str, ...] = ()) -> Reference:
    return Reference(answers=answers, choices=choices)


BIRDS = ("Robin", "Jay", "Cardinal", "House Wren", "Wren")

EXACT = [
    ("A cat.", "a cat", 1),
    ("  a\n cat ", "A Cat", 1),
    ("ﬁsh", "fish", 1),
    ("The cat", "cat", 0),
    ("cat..", "cat", 0),
    ("3.5", "3.5", 1),
    ("", "cat", 0),
]
CONTAINS = [
    ("I see a black cat.", "cat", 1),
    ("category", "cat", 0),
    ("C++ it is", "C++", 1),
    ("a red  Fish", "red fish", 1),
    ("", "cat", 0),
]
LETTER = [
    ("C", "C", 1),
    (" c", "C", 1),
    ("(C)", "C", 1),
    ("c.", "C", 1),
    ("C. Cardinal", "C", 1),
    ("C: Cardinal", "C. Cardinal", 1),
    ("I think it is a Cardinal, option C", "C", 1),
    ("I think it is a Cardinal, option C", "I", 0),
    ("A bird, so the answer is B.", "B", 1),
    ("The answer is (d)", "D", 1),
    ("Answer: B", "B", 1),
    ("Option A is wrong; the answer is B", "B", 1),
    ("A cat is here, so C", "C", 1),
    ("It is a (C)", "C", 1),
    ("I", "I", 1),
    ("B or C", "B", 0),
    ("no idea", "A", 0),
    ("the answer is a cardinal", "A", 0),
    ("the answer is a.", "A", 1),
    ("", "A", 0),
]
NUMBER = [
    ("sixteen", "16", 1),
    ("sixteen", "6", 0),
    ("fourteen", "14", 1),
    ("nineteen", "19", 1),
    ("There are sixteen dogs in this image.", "16", 1),
    ("stones: 12", "12", 1),
    ("stones: 12", "1", 0),
    ("3.5", "35", 0),
    ("3.5", "3.5", 1),
    ("2.0", "2", 1),
    ("3.", "3", 1),
    (".5", "0.5", 1),
    ("1,234", "1234", 1),
    ("12,34", "1234", 0),
    ("-5", "5", 0),
    ("−5", "-5", 1),
    ("minus five", "-5", 1),
    ("3-5", "3", 1),
    ("twenty-one", "21", 1),
    ("Twenty One", "21", 1),
    ("two hundred and five", "205", 1),
    ("a hundred", "100", 1),
    ("one hundred twenty-three thousand four hundred and fifty-six", "123456", 1),
    ("one million", "1000000", 1),
    ("1.5 million", "1500000", 1),
    ("twelve hundred", "1200", 1),
    ("three point one four", "3.14", 1),
    ("12cm", "12", 1),
    ("about 12 or 13", "12", 1),
    ("the 2nd has 4 legs", "4", 1),
    ("the one on the left: 12", "12", 1),
    ("one of them has 3", "3", 1),
    ("one", "1", 1),
    ("One.", "1", 1),
    ("no one", "1", 0),
    ("someone", "1", 0),
    ("B2", "2", 0),
    ("none", "0", 0),
    ("zero", "0", 1),
    ("two three", "2", 1),
    ("two cats and three dogs", "2", 1),
    ("1e3", "1000", 1),
    ("", "0", 0),
]
CLOCK = [
    ("12:05", "00:05", 1),
    ("five past twelve", "12:05", 1),
    ("Five minutes past twelve.", "00:05", 1),
    ("10.30", "10:30", 1),
    ("10h30", "10:30", 1),
    ("half past three", "3:30", 1),
    ("quarter to four", "3:45", 1),
    ("a quarter past four", "4:15", 1),
    ("It is a quarter to one.", "12:45", 1),
    ("twenty-five to six", "5:35", 1),
    ("15:45", "3:45", 1),
    ("3:45:10 PM", "03:45", 1),
    ("3 o'clock", "3:00", 1),
    ("three o’clock", "15:00", 1),
    ("five thirty", "5:30", 1),
    ("ten oh five", "10:05", 1),
    ("twelve forty-five", "12:45", 1),
    ("noon", "0:00", 1),
    ("midnight", "12:00", 1),
    ("6 pm", "18:00", 1),
    ("3:59", "4:00", 0),
    ("25:30", "1:30", 0),
    ("3:75", "4:15", 0),
    ("3.5", "3:05", 0),
    ("twenty five", "20:05", 0),
    ("5", "5:00", 0),
    ("", "12:00", 0),
]
NEAR = [("3:59", "4:00", 1), ("12:00", "11:59", 1), ("3:58", "4:00", 0), ("3:59", "3:00", 0), ("no idea", "4:00", 0)]
YES_NO = [
    ("Yes.", "yes", 1),
    ("yes, it is", "Yes", 1),
    ("No, yes is wrong", "no", 1),
    ("It is, yes", "yes", 1),
    ("yes and no", "yes", 1),
    ("maybe yes or no", "yes", 0),
    ("true", "yes", 1),
    ("I know nothing", "no", 0),
    ("", "no", 0),
]
TABLES = {"exact": EXACT, "contains": CONTAINS, "letter": LETTER, "number": NUMBER, "clock": CLOCK, "clock-near": NEAR, "yes-no": YES_NO}
ROWS = [(name, *row) for name, table in TABLES.items() for row in table]


@pytest.mark.parametrize(("name", "output", "answer", "wanted"), ROWS, ids=[f"{row[0]}:{row[1]}={row[2]}" for row in ROWS])
def test_a_hard_case_scores_as_its_reader_would(name: str, output: str, answer: str, wanted: int) -> None:
    assert SCORERS[name](output, ref(answer)) == wanted


@pytest.mark.parametrize(
    ("output", "answer", "wanted"),
    [
        ("It is a cardinal", "Cardinal", 1),
        ("It is a cardinal", "C", 1),
        ("a house wren", "House Wren", 1),
        ("a house wren", "Wren", 0),
        ("a wren", "Wren", 1),
        ("a robin or a jay", "Robin", 0),
        ("G", "C", 0),
        ("option G or C", "C", 1),
    ],
)
def test_a_choice_in_words_stands_for_its_letter(output: str, answer: str, wanted: int) -> None:
    assert SCORERS["letter"](output, ref(answer, choices=BIRDS)) == wanted


def test_token_f1_compares_words_without_articles_and_punctuation() -> None:
    f1 = SCORERS["f1"]
    assert f1("A dragonfly.", ref("dragonfly")) == 1
    assert f1("a red fish", ref("the blue fish")) == 0.5
    assert f1("fish fish", ref("fish")) == pytest.approx(2 / 3)
    assert f1(" 6", ref("a dragonfly")) == 0
    assert f1("", ref("the")) == 1
    assert f1("liver", ref("in the posterior liver lobe")) == pytest.approx(0.4)


def test_the_best_of_several_answers_counts() -> None:
    assert SCORERS["exact"]("feline", ref("cat", "feline")) == 1
    assert SCORERS["f1"]("a red fish", ref("cat", "red fish")) == 1
    assert SCORERS["number"]("7", ref("6", "seven")) == 1
    assert SCORERS["clock-near"]("4:01", ref("1:00", "four o'clock")) == 1


@pytest.mark.parametrize(
    ("name", "answer", "what"),
    [("number", "many", "a number"), ("clock", "late", "a time"), ("letter", "many", "letter"), ("yes-no", "so", "yes or no")],
)
def test_an_answer_that_a_scorer_cannot_read_is_an_error_of_the_record(name: str, answer: str, what: str) -> None:
    with pytest.raises(DataError, match=f'"{answer}" is not .*{what}'):
        SCORERS[name]("7", ref(answer))


def test_an_unknown_scorer_is_named_with_a_near_one() -> None:
    with pytest.raises(NoMatch, match=r'"exakt" is no scorer. Did you mean exact\?'):
        scorer("exakt")


def test_a_function_is_a_scorer_by_its_own_name_and_a_nameless_one_is_refused() -> None:
    assert scorer(ref_length) is ref_length
    assert scorer_name(ref_length).endswith("test_scorers.ref_length")
    with pytest.raises(InputError, match="no name of its own"):
        scorer_name(lambda output, reference: 1.0)


def ref_length(output: str, reference: Reference) -> float:
    return float(len(output) == len(reference.answers[0]))


@given(st.sampled_from(sorted(SCORERS)), st.text(max_size=60), st.sampled_from(["7", "12:05", "C", "yes", "a cat"]))
def test_every_scorer_gives_0_to_1_or_refuses_the_answer(name: str, output: str, answer: str) -> None:
    try:
        score = SCORERS[name](output, ref(answer))
    except DataError:
        return
    assert 0 <= score <= 1


@given(st.text("abcXYZ 09'-", max_size=30))
def test_case_and_white_space_and_one_final_period_never_matter_to_exact(text: str) -> None:
    assert SCORERS["exact"](f"  {text.upper()}\n", ref(text.replace(" ", "  "))) == 1
    assert SCORERS["exact"](f"{text}.", ref(text)) == 1


ONES = (
    "",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
)
ONES = (*ONES, "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spelt(value: int, *, hyphen: str = "-", and_: str = " and ") -> str:
    """A whole number below a thousand million in words, by another way than the reader's."""
    if value < 20:
        return ONES[value] or "zero"
    if value < 100:
        return TENS[value // 10] + (hyphen + ONES[value % 10] if value % 10 else "")
    for name, size in (("million", 10**6), ("thousand", 10**3), ("hundred", 100)):
        if value >= size:
            rest = value % size
            joint = and_ if rest < 100 else " "
            return f"{spelt(value // size, hyphen=hyphen, and_=and_)} {name}" + (
                joint + spelt(rest, hyphen=hyphen, and_=and_) if rest else ""
            )
    raise AssertionError(value)


@given(
    st.integers(0, 10**9 - 1),
    st.sampled_from(["-", " "]),
    st.sampled_from([" and ", " "]),
    st.booleans(),
    st.sampled_from(["{}", "({})", "It has {}."]),
)
def test_a_number_in_words_is_read_whole_however_it_is_joined(value: int, hyphen: str, and_: str, capital: bool, frame: str) -> None:
    words = spelt(value, hyphen=hyphen, and_=and_)
    text = frame.format(words.upper() if capital else words)
    assert [found.value for found in find_numbers(text)] == [value]
    assert text[find_numbers(text)[0].start : find_numbers(text)[0].end].lower() == words


@given(st.decimals(min_value=-(10**9), max_value=10**9, allow_nan=False, places=3))
def test_a_number_in_digits_is_read_whole_with_its_sign_and_decimals(value: Decimal) -> None:
    assert find_number(f"about {value} m") == value
    assert find_number(f"about {value:,} m") == value


@given(st.integers(0, 719), st.integers(0, 1))
def test_every_time_of_the_face_is_read_from_digits_and_from_words(minutes: int, half_day: int) -> None:
    hour, minute = divmod(minutes, 60)
    assert find_time(f"It is {hour + 12 * half_day:02d}:{minute:02d} now") == minutes
    following = spelt(hour % 12 + 1)
    said = f"{spelt(minute)} past {spelt(hour or 12)}" if minute <= 30 else f"{spelt(60 - minute)} minutes to {following}"
    assert find_time(said.replace("zero past", "0 past")) == minutes


def test_number_words_end_where_the_grammar_of_numbers_ends() -> None:
    assert [str(found.value) for found in find_numbers("twenty eleven, one two; ten hundred million billion")] == [
        "20",
        "11",
        "1",
        "2",
        "1000000000",
        "1000000000",
    ]
    assert [str(found.value) for found in find_numbers("two thousand, three hundred; forty, five")] == ["2300", "40", "5"]
    assert "seventeen" in NUMBER_WORDS


def test_a_letter_beyond_the_choices_is_no_answer() -> None:
    assert find_letter("Z") == "Z"
    assert find_letter("Z", ("a", "b")) is None


def test_yes_and_no_without_a_first_word_must_agree() -> None:
    assert find_yes_no("it is true, yes") is True
    assert find_yes_no("it is false, yes") is None
