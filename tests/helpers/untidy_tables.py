"""Three small tables as people have them: passengers, flats and sales."""

import gzip
from pathlib import Path

import numpy as np

ROWS = 90


def passengers(folder: Path) -> tuple[Path, list[str]]:
    """Text, missing numbers and categories, true/false with gaps, names, an index without a name;
    target: a class."""
    rng = np.random.default_rng(1)
    lines = [",Name,Sex,Age,Port,Paid,Note,Alive"]
    for i in range(ROWS):
        sex = ("male", "female")[int(rng.integers(2))]
        age = "" if i % 8 == 3 else str(round(float(rng.uniform(1, 70)), 1))
        port = ("S", "C", "Q", "NA")[int(rng.integers(4))]
        paid = ("True", "False", "")[int(rng.integers(3))]
        alive = ("no", "yes")[int(rng.random() < (0.9 if sex == "female" else 0.15))]
        lines.append(f'{i},"No. {i}, {sex}",{sex},{age},{port},{paid},,{alive}')
    path = folder / "passengers.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path, ["--target", "Alive"]


def flats(folder: Path) -> tuple[Path, list[str]]:
    """Semicolons, decimal commas with thousands apart, German dates, Windows-1252, gzip; target:
    a number with a comma, missing in two rows."""
    rng = np.random.default_rng(2)
    lines = ["Straße;Stadt;Fläche;gebaut;Balkon;Preis"]
    for i in range(ROWS):
        city = int(rng.integers(3))
        area = float(rng.uniform(30, 1400))
        price = 900 * (city + 1) + 3 * area + float(rng.normal())
        day, month, year = (int(rng.integers(*span)) for span in ((1, 29), (1, 13), (1950, 2020)))
        built = f"{day:02}.{month:02}.{year}"
        shown = "" if i in (5, 50) else german(price)
        words = [f"Straße {i}", ("Köln", "München", "Bonn")[city], german(area), built]
        lines.append(";".join([*words, ("ja", "nein")[i % 2], shown]))
    path = folder / "flats.csv.gz"
    path.write_bytes(gzip.compress("\r\n".join([*lines, ""]).encode("cp1252")))
    return path, ["--target", "Preis"]


def german(number: float) -> str:
    """As 1.234,50."""
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


def sales(folder: Path) -> tuple[Path, list[str]]:
    """Tabs, ISO dates with gaps, thousands with a comma, many products; target: a number."""
    rng = np.random.default_rng(3)
    lines = ["day\tproduct\tviews\tregion\tsold"]
    for i in range(ROWS):
        day = "" if i % 10 == 9 else f"2026-{1 + i // 28:02}-{1 + i % 28:02}"
        product, views = i % 22, int(rng.integers(500, 9000))
        region = ("north", "south")[int(rng.integers(2))]
        sold = views / 50 + 2.5 * i + float(rng.normal())
        lines.append(f"{day}\tP{product:02}\t{views:,}\t{region}\t{sold:.2f}")
    path = folder / "sales.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-16")
    return path, ["--target", "sold"]


TABLES = {make.__name__: make for make in (passengers, flats, sales)}
