"""Numbers in the forms people and models write them in."""

from fractions import Fraction

import pytest

from profit_sft.evaluation.numbers import PlainNumber, plain_number, plain_numbers

WRITTEN = {
    "5": 5,
    "5.": 5,
    "007": 7,
    "-5": -5,
    "- 5": -5,
    "+5": 5,
    "\u22127": -7,
    "18.00": 18,
    ".75": Fraction(3, 4),
    "3.5": Fraction(7, 2),
    "1,234": 1234,
    "1,234,567.5": Fraction(2469135, 2),
    r"1{,}234": 1234,
    r"1,\!234": 1234,
    r"1,\! 234,\! 567": 1234567,
    r"12\,345": 12345,
    "12\u202f345": 12345,
    "7/2": Fraction(7, 2),
    "-7 / 2": Fraction(-7, 2),
    "3 1/2": Fraction(7, 2),
    r"\frac{3}{4}": Fraction(3, 4),
    r"\dfrac{3}{4}": Fraction(3, 4),
    r"\frac34": Fraction(3, 4),
    r"-\frac{3}{4}": Fraction(-3, 4),
    r"3\tfrac{1}{2}": Fraction(7, 2),
    "$18": 18,
    r"\$18.50": Fraction(37, 2),
    "-$5": -5,
    r"$-\$5$": -5,
    "€1,000": 1000,
    "\u00a32": 2,
    "18 dollars": 18,
    "60 km/h": 60,
    "5 square feet": 5,
    r"5 \text{ cm}^2": 5,
    r"5\text{ cm}^{2}": 5,
    "5 m\u00b2": 5,
    "3.5 L": Fraction(7, 2),
    r"45^\circ": 45,
    r"45^{\circ}": 45,
    "45°": 45,
    r"x = 5": 5,
    r"\text{total} = 5 \text{ apples}": 5,
    "(113)": 113,
    r"\textbf{(73) }": 73,
    r"\mathbf{12}": 12,
}


@pytest.mark.parametrize(("text", "value"), WRITTEN.items())
def test_a_number_is_read_in_every_form(text, value):
    found = plain_number(text)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "five", "5x", "5 x", "2x + 3", "3, 4", "(3, 4)", "3 and 4", "5 to 7", "2^{10}", "12 + 5", "14-9"),
        *("12:30", "5pi", r"5\pi", r"\sqrt{5}", "5 sqrt", "1/0", "1/2/3", "1,23", "5, 000", r"\frac{x}{2}"),
    ],
)
def test_anything_else_is_no_number(text):
    assert plain_number(text) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3, 5", [3, 5]),
        ("3,5", [3, 5]),
        ("1,250, 3", [1250, 3]),
        ("3, 5, and 7 dollars", [3, 5, 7]),
        ("x = 3 or x = 5", [3, 5]),
        (r"\{3,5\}", [3, 5]),
        ("7", [7]),
    ],
)
def test_a_list_of_numbers(text, values):
    assert [number.value for number in plain_numbers(text)] == values


@pytest.mark.parametrize("text", ["", "3, x", "(3, 5)", "[3, 5)", "3 and a half"])
def test_a_list_of_anything_else(text):
    assert plain_numbers(text) is None


def test_percent_is_taken_for_the_number_and_for_the_hundredth():
    twenty, fifth = PlainNumber(Fraction(20)), PlainNumber(Fraction(1, 5))
    for written in (r"20\%", "20%", "20 percent", "20 per cent"):
        percent = plain_number(written)
        assert percent is not None
        assert percent.equals(twenty)
        assert percent.equals(fifth)
        assert fifth.equals(percent)
    assert not twenty.equals(fifth)
    assert not PlainNumber(Fraction(20), is_percent=True).equals(PlainNumber(Fraction(2)))
