"""Data sets: the handwritten digits, and tables from CSV files."""

from steepest.data.datasets import *
from steepest.data.datasets import __all__ as __all__
