"""What the fields of schedules may be, so that most schedules need no checks of their own:

    lr: Level        a finite number, at least 0
    steps: Length    an integer, at least 1

Every value is a number, a string, a truth value or a tuple of those, so a schedule can be written
down as its name and its fields.
"""

from typing import Annotated

from steepest.fields import Many, Range, Truth

__all__ = [
    "Count",
    "Factor",
    "Flag",
    "Inside",
    "Length",
    "Lengths",
    "Level",
    "Number",
    "Numbers",
    "Share",
]

Number = Annotated[float, Range(float)]
Level = Annotated[float, Range(float, 0)]
Factor = Annotated[float, Range(float, 0, above=True)]
Share = Annotated[float, Range(float, 0, 1)]
Inside = Annotated[float, Range(float, 0, 1, above=True, below=True)]
Count = Annotated[int, Range(int, 0)]
Length = Annotated[int, Range(int, 1)]
Flag = Annotated[bool, Truth(numbers=True)]
Numbers = Annotated[tuple[float, ...], Many(Range(float))]
Lengths = Annotated[tuple[int, ...], Many(Range(int, 1), increasing=True)]
