"""Scorers read what an answer says: tables of hard cases, and properties."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectune.errors import DataError, InputError, NoMatch
from selectune.evaluation.clock import find_time
from selectune.evaluation.numerals import NUMBER_WORDS, find_numbers
from selectune.evaluation.scorers import SCORERS, Reference, find_letter, find_number, find_yes_no, letters, scorer, scorer_name


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


FINAL = [
    ("3 + 4 = 7\n#### 7", "7", 1),
    ("#### 1,234", "1234", 1),
    ("He has 5 eggs and sells 3. The answer is 2.", "2", 1),
    ("The answer is $18 a day, after 3 sales", "18", 1),
    ("5 eggs at 2 dollars are 10 dollars", "10", 1),
    ("5 eggs at 2 dollars are 10 dollars", "5", 0),
    ("So the answer is not known yet, but 7", "7", 1),
    ("twelve", "12", 1),
    ("-3", "3", 0),
    ("", "7", 0),
]
RELAXED = [
    ("105", "100", 1),
    ("95", "100", 1),
    ("94.9", "100", 0),
    ("-100", "100", 0),
    ("0", "0", 1),
    ("0.001", "0", 0),
    ("12 %", "12", 1),
    ("12 percent", "0.12", 1),
    ("About 1.5 million", "1500000", 1),
    ("two", "2", 1),
    ("25 of 100", "25", 0),
    ("25, that is 25", "25", 1),
    ("Brazil.", "brazil", 1),
    ("Brasil", "Brazil", 0),
    ("2010-2012", "2010-2012", 1),
    ("2010", "2010-2012", 0),
]
HOUR = [("3:59", "4:00", 1), ("4:59", "4:00", 1), ("15:20", "3:45", 1), ("3:58", "4:00", 0), ("12:01", "00:40", 1), ("no", "4:00", 0)]
MINUTE = [("3:59", "4:00", 1), ("9:00", "4:59", 1), ("4:02", "4:00", 0), ("half past two", "7:31", 1), ("no", "4:00", 0)]
SHORT = [
    ("Yes, it is.", "yes", 1),
    ("yes", "No", 0),
    ("sixteen", "16", 1),
    ("there are 3", "3", 1),
    ("Downhill.", "downhill", 1),
    ("It goes downhill", "downhill", 0),
    ("2 mm", "2 cm", 0),
    ("no idea", "liver", 0),
]


@pytest.mark.parametrize(
    ("name", "output", "answer", "wanted"),
    [
        (name, *row)
        for name, table in (
            ("final-number", FINAL),
            ("relaxed", RELAXED),
            ("clock-hour", HOUR),
            ("clock-minute", MINUTE),
            ("short-answer", SHORT),
        )
        for row in table
    ],
)
def test_a_worked_a_relaxed_and_a_mixed_answer_score_as_their_reader_would(name: str, output: str, answer: str, wanted: int) -> None:
    assert SCORERS[name](output, ref(answer)) == wanted


def test_a_short_answer_with_choices_is_a_letter() -> None:
    offered = Reference(answers=("C",), choices=("A", "B", "C"), options=("Robin", "Jay", "Cardinal"))
    assert SCORERS["short-answer"]("It is the cardinal", offered) == 1
    assert SCORERS["short-answer"]("option B", offered) == 0


@pytest.mark.parametrize(
    ("output", "wanted"), [("A", 1), ("B", 0), ("a bird", 0), ("I think A", 0), ("F", 1), ("E", 0), ("the answer is A", 1)]
)
def test_options_that_are_letters_themselves_do_not_mix_with_those_of_the_choices(output: str, wanted: int) -> None:
    # AI2D asks which label of a drawing is meant: option A is "F", option D is "A".
    assert SCORERS["letter"](output, Reference(answers=("A",), choices=("A", "B", "C", "D"), options=("F", "B", "E", "A"))) == wanted


def test_a_reference_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="it has no right answer"):
        Reference(answers=())


def test_vqa_counts_people_and_refuses_too_few() -> None:
    def asked(*people: str) -> Reference:
        return Reference(answers=tuple(dict.fromkeys(people)), meta={"answers": people})

    vqa = SCORERS["vqa"]
    assert vqa("blue", asked(*["blue"] * 10)) == 1
    assert vqa("blue", asked("blue", *["red"] * 9)) == pytest.approx(0.3)
    assert vqa("blue", asked("blue", "blue", *["red"] * 8)) == pytest.approx(0.6)
    assert vqa("blue", asked(*["blue"] * 4)) == 1
    with pytest.raises(DataError, match="it has the answers of 3 people"):
        vqa("blue", asked("blue", "blue", "blue"))
    with pytest.raises(DataError, match="it has the answers of 0 people"):
        vqa("blue", ref("blue"))


def test_anls_forgives_slips_of_reading_and_nothing_more() -> None:
    anls = SCORERS["anls"]
    assert anls("Hello  World", ref("hello world")) == 1
    assert anls("helo", ref("hello")) == pytest.approx(0.8)
    assert anls("ab", ref("ac")) == 0.5
    assert anls("abc", ref("axy")) == 0
    assert anls("helo", ref("no", "hello")) == pytest.approx(0.8)


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_anls_is_one_only_for_equal_texts_and_the_same_both_ways(output: str, answer: str) -> None:
    there, back = SCORERS["anls"](output, ref(answer)), SCORERS["anls"](answer, ref(output))
    assert there == back
    assert (there == 1) == (" ".join(output.lower().split()) == " ".join(answer.lower().split()))
    assert there == 0 or 0.5 <= there <= 1


@given(st.decimals(min_value=1, max_value=10**6, places=2), st.floats(-0.2, 0.2))
def test_relaxed_accuracy_turns_at_five_per_cent(right: Decimal, off: float) -> None:
    said = right * (1 + Decimal(off))
    assert SCORERS["relaxed"](f"{said:f}", ref(str(right))) == float(abs(said - right) <= Decimal("0.05") * right)


@given(st.integers(0, 719), st.integers(0, 719))
def test_near_times_have_the_right_hour_and_the_right_minute(said: int, right: int) -> None:
    text, answer = (f"{minutes // 60}:{minutes % 60:02d}" for minutes in (said, right))
    scores = {name: SCORERS[name](text, ref(answer)) for name in ("clock", "clock-near", "clock-hour", "clock-minute")}
    assert scores["clock"] <= scores["clock-near"] <= min(scores["clock-hour"], scores["clock-minute"])


@given(st.integers(0, 10**6), st.sampled_from(["{}", "It is {}.", "#### {}", "{} dollars"]))
def test_a_final_number_in_words_or_digits_is_read_whole(value: int, frame: str) -> None:
    for text in (str(value), f"{value:,}", spelt(value)):
        assert SCORERS["final-number"](frame.format(text), ref(str(value))) == 1


@given(st.lists(st.sampled_from(["red", "blue", "a blue", "2", "two"]), min_size=4, max_size=10), st.sampled_from(["red", "Blue", "two"]))
def test_the_order_of_the_people_asked_does_not_matter_to_vqa(people: list[str], output: str) -> None:
    there, back = (SCORERS["vqa"](output, Reference(answers=("red",), meta={"answers": given})) for given in (people, people[::-1]))
    assert there == pytest.approx(back)
    assert 0 <= there <= 1


@given(
    st.integers(2, 26),
    st.data(),
    st.sampled_from(["{}", "({})", "{}.", "{}: this", "The answer is {}.", "I would say option {}", "**{}**"]),
)
def test_a_letter_is_read_from_every_way_of_giving_it(count: int, data: st.DataObject, frame: str) -> None:
    offered = letters(count)
    wanted = data.draw(st.sampled_from(offered))
    others = [one for one in offered if one != wanted]
    assert SCORERS["letter"](frame.format(wanted), Reference(answers=(wanted,), choices=offered)) == 1
    assert SCORERS["letter"](frame.format(wanted), Reference(answers=(others[0],), choices=offered)) == 0


@given(st.sampled_from(["yes", "no"]), st.sampled_from(["{}", "{}.", "{}, it is", "Well: {}!"]))
def test_yes_and_no_are_read_in_any_case_and_never_mixed_up(said: str, frame: str) -> None:
    for text in (said, said.upper(), said.title()):
        assert SCORERS["yes-no"](frame.format(text), ref(said)) == 1
        assert SCORERS["yes-no"](frame.format(text), ref("no" if said == "yes" else "yes")) == 0
        assert SCORERS["short-answer"](frame.format(text), ref(said)) == 1


@given(
    st.lists(st.sampled_from(["red", "fish", "cat"]), min_size=1, max_size=5), st.lists(st.sampled_from(["red", "a", "cat"]), max_size=5)
)
def test_f1_is_the_same_both_ways_and_contains_follows_from_a_whole_answer(output: list[str], answer: list[str]) -> None:
    said, right = " ".join(output), " ".join(answer)
    assert SCORERS["f1"](said, ref(right)) == SCORERS["f1"](right, ref(said))
    assert SCORERS["contains"](f"so {said} it is", ref(said)) == 1
    assert SCORERS["contains"](said, ref(right)) >= SCORERS["exact"](said, ref(right))
