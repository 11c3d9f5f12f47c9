"""Outputs and answers that scorers are compared on with other packages, and why a score differs where it does.

`scripts/record_lmms_eval.py` runs lmms-eval on them in an environment of its own; `scripts/build_docs.py` shows the table.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One output; `why` says what makes our score another one, and is empty where both are equal."""

    metric: str
    output: str
    answers: tuple[str, ...]
    why: str = ""
    choices: tuple[str, ...] = ()


def score(case: Case) -> float:
    """Our score of a case."""
    from selectune.evaluation.scorers import Reference, letters, scorer

    answers, count = tuple(dict.fromkeys(case.answers)), len(case.choices)
    reference = Reference(answers=answers, choices=letters(count), options=case.choices, meta={"answers": case.answers})
    return scorer(SCORER[case.metric])(case.output, reference)


SCORER = {
    "relaxed": "relaxed",
    "anls": "anls",
    "textvqa": "vqa",
    "ai2d": "letter",
    "scienceqa": "letter",
    "seedbench": "letter",
    "mmstar": "letter",
    "pixmo_count": "number",
    "realworldqa": "short-answer",
}
"""lmms-eval's metric, by its task, and the scorer that stands for it here."""

WORKED = "a sentence with one number states that number"
PERCENT = "25 % is taken as 25 as well as 0.25; there only as 0.25"
ALL_TEN = ("blue",) * 10
SPLIT = ("blue",) * 2 + ("navy",) * 5 + ("dark blue",) * 3
HERE = "the letter is read from the sentence; there the whole output has to be it"
FIRST = "there the first character is the answer, whatever it belongs to"
BIRDS = ("Robin", "Jay", "Cardinal", "Wren")

CASES = (
    Case("relaxed", "25", ("25",)),
    Case("relaxed", "26", ("25",)),
    Case("relaxed", "27", ("25",)),
    Case("relaxed", "26.25", ("25",)),
    Case("relaxed", "23.75", ("25",)),
    Case("relaxed", "-25", ("25",)),
    Case("relaxed", "0.25", ("25%",)),
    Case("relaxed", "25%", ("25%",)),
    Case("relaxed", "25%", ("0.25",)),
    Case("relaxed", "25%", ("25",), PERCENT),
    Case("relaxed", "25", ("25%",), PERCENT),
    Case("relaxed", "0", ("0",)),
    Case("relaxed", "0.0", ("0",), "zero is compared as a number; there as text"),
    Case("relaxed", "0.01", ("0",)),
    Case("relaxed", "1,234", ("1234",), "a comma may group thousands"),
    Case("relaxed", "$12.5", ("12.5",), "a sign of currency is no part of the number"),
    Case("relaxed", "It is 25.", ("25",), WORKED),
    Case("relaxed", "25.", ("25",)),
    Case("relaxed", "twenty-five", ("25",), "words are numbers"),
    Case("relaxed", "25 in 2010", ("25",)),
    Case("relaxed", "2009", ("2010",)),
    Case("relaxed", "Yes", ("yes",)),
    Case("relaxed", "Yes.", ("Yes",), "one final period never matters"),
    Case("relaxed", " Blue ", ("blue",), "white space around never matters"),
    Case("relaxed", "blue", ("red",)),
    Case("relaxed", "", ("25",)),
    Case("relaxed", "nan", ("25",)),
    Case("anls", "cat", ("cat",)),
    Case("anls", "Cat ", ("cat",)),
    Case("anls", "the cat", ("cat",)),
    Case("anls", "cats", ("cat",)),
    Case("anls", "ab", ("ac",)),
    Case("anls", "abc", ("xyz",)),
    Case("anls", "", ("cat",)),
    Case("anls", "12 March 1999", ("12 march 1998", "March 1998")),
    Case("anls", "10  a", ("10 b",), "lengths are those of what is compared, with white space runs as one; there those of the raw texts"),
    Case("anls", "straße", ("strasse",)),
    Case("anls", "cat.", ("cat",)),
    Case("textvqa", "blue", ALL_TEN),
    Case("textvqa", "red", ALL_TEN),
    Case("textvqa", "Blue.", ALL_TEN),
    Case("textvqa", "the blue", ALL_TEN),
    Case("textvqa", "blue", SPLIT),
    Case("textvqa", "navy", SPLIT),
    Case("textvqa", "dark-blue", SPLIT),
    Case("textvqa", "dark  blue", SPLIT),
    Case("textvqa", "2", ("two",) * 10),
    Case("textvqa", "eleven", ("11",) * 10),
    Case("textvqa", "none", ("0",) * 10),
    Case("textvqa", "dont", ("don't",) * 10),
    Case("textvqa", "couldn'tve", ("couldnt've",) * 10),
    Case("textvqa", "o'clock", ("oclock",) * 10),
    Case("textvqa", "joe's", ("joe 's",) * 10),
    Case("textvqa", "1,000", ("1000",) * 10),
    Case("textvqa", "3.5", ("3.5",) * 10),
    Case("textvqa", "U.S.A.", ("usa",) * 10),
    Case("textvqa", "a/b", ("a b",) * 10),
    Case("textvqa", "a / b", ("a b",) * 10),
    Case("textvqa", "(coke)", ("coke",) * 10),
    Case("textvqa", "coke, pepsi", ("coke pepsi",) * 10),
    Case("textvqa", "what?", ("what",) * 10),
    Case("textvqa", "It's blue", ("blue",) * 10),
    Case("textvqa", "", ALL_TEN),
    Case("ai2d", "C", ("C",), choices=BIRDS),
    Case("ai2d", "C. Cardinal", ("C",), choices=BIRDS),
    Case("ai2d", "c", ("C",), choices=BIRDS),
    Case("ai2d", "C.", ("C",), choices=BIRDS),
    Case("ai2d", "B", ("C",), choices=BIRDS),
    Case("ai2d", "(C)", ("C",), choices=BIRDS),
    Case("ai2d", "C: Cardinal", ("C",), HERE, BIRDS),
    Case("ai2d", "I think it is a Cardinal, option C", ("C",), HERE, BIRDS),
    Case("ai2d", "Cardinal", ("C",), "an option's words stand for its letter", BIRDS),
    Case("scienceqa", "C", ("C",), choices=BIRDS),
    Case("scienceqa", "C. Cardinal", ("C",), choices=BIRDS),
    Case("scienceqa", "c", ("C",), choices=BIRDS),
    Case("scienceqa", "(C)", ("C",), HERE, BIRDS),
    Case("scienceqa", "The answer is C.", ("C",), HERE, BIRDS),
    Case("seedbench", "C", ("C",), choices=BIRDS),
    Case("seedbench", "C. Cardinal", ("C",), choices=BIRDS),
    Case("seedbench", "Cardinal", ("C",), choices=BIRDS),
    Case("seedbench", "Certainly a Robin", ("C",), FIRST, BIRDS),
    Case("seedbench", "Robin", ("A",), "an option's words stand for its letter", BIRDS),
    Case("seedbench", "The answer is C", ("C",), FIRST, BIRDS),
    Case("mmstar", "C", ("C",)),
    Case("mmstar", "(C)", ("C",)),
    Case("mmstar", "The answer is C.", ("C",)),
    Case("mmstar", "the correct option is (B)", ("B",)),
    Case("mmstar", "A", ("A",)),
    Case(
        "mmstar",
        "A bird, so the answer is B.",
        ("B",),
        "a capital A before a word is an article; there it wins as the first letter",
    ),
    Case("mmstar", "c", ("C",), "a small letter alone is an answer; there capitals only"),
    Case("mmstar", "Certainly", ("C",), "a letter within a word is none; there it counts where nothing else does"),
    Case("mmstar", "B or C", ("B",), "two letters settle on none; there the first at the start wins"),
    Case("mmstar", "no idea", ("A",)),
    Case("pixmo_count", "12", ("12",)),
    Case("pixmo_count", "There are 12 dogs.", ("There are 12 dogs in this image.",)),
    Case("pixmo_count", "stones: 12", ("12",)),
    Case("pixmo_count", "11", ("12",)),
    Case("pixmo_count", "sixteen", ("16",), "words are numbers; there digits only"),
    Case("pixmo_count", "sixteen", ("6",)),
    Case("pixmo_count", "3.5", ("3",), "3.5 is one number; there its first digits are"),
    Case("pixmo_count", "-5", ("5",), "a sign belongs to its number; there it is lost"),
    Case("pixmo_count", "1,234", ("1234",), "a comma may group thousands"),
    Case("pixmo_count", "the 2nd row has 4", ("4",), "an ordinal is no amount"),
    Case("realworldqa", "B", ("B",), choices=BIRDS),
    Case("realworldqa", "(B) Jay", ("B",), choices=BIRDS),
    Case("realworldqa", "The answer is B", ("B",), choices=BIRDS),
    Case("realworldqa", "Downhill.", ("Downhill",)),
    Case("realworldqa", "Yes", ("Yes",)),
    Case("realworldqa", "Yes, it is.", ("Yes",), "yes and no are read from the sentence"),
    Case("realworldqa", "3", ("3",)),
    Case("realworldqa", "three", ("3",), "words are numbers"),
    Case("realworldqa", "3 cars", ("3",), "the number is read from the sentence"),
    Case("realworldqa", "", ("3",)),
)


class StudyCase(NamedTuple):
    """One output as the study's reference code scores it."""

    scorer: str
    output: str
    answer: str
    there: float
    here: float
    why: str


STUDY = (
    StudyCase("number", "sixteen", "6", 1, 0, "there every number word within a word is replaced, and six comes before sixteen"),
    StudyCase("number", "sixteen", "16", 0, 1, "the same"),
    StudyCase("number", "fourteen", "4", 1, 0, "the same"),
    StudyCase("number", "stones: 12", "12", 0, 1, 'there "one" in "stones" is a 1'),
    StudyCase("number", "3.5", "35", 1, 0, "there the point is taken out first"),
    StudyCase("letter", "I think it is a Cardinal, option C", "C", 0, 1, "there the first word of one letter is the answer, an I"),
    StudyCase("letter", "C", "C", 1, 1, ""),
    StudyCase("clock-near", "3:45", "03:45", 1, 1, ""),
    StudyCase("clock-near", "12:05", "00:05", 0, 1, "a face has twelve hours; there hours are compared as numbers"),
    StudyCase("clock-near", "10.30", "10:30", 0, 1, "a point may stand between hour and minute; there it is taken out first"),
    StudyCase("clock-near", "3:59", "4:00", 0, 1, "a minute off is a minute off, across the hour too"),
    StudyCase("clock-near", "3:59", "3:00", 1, 0, "there 59 and 0 are a minute apart, though the hour is the same"),
    StudyCase("short-answer", "2 cm", "5 cm", 1, 0, "there digits are taken out before words are compared"),
    StudyCase(
        "short-answer", "liver", "in the posterior liver lobe", 1, 0, "there exact match is the share of the output's words that are right"
    ),
    StudyCase("short-answer", "Yes.", "yes", 0, 1, "yes and no are read from the sentence; there the period counts"),
)
"""What the study's scorers give, as its fact sheet found by running them or, for 3:59 and 3:00, as the code says."""
