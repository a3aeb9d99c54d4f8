#!/usr/bin/env bash
# A data scientist: from a table as one finds it to predictions, an estimator and an ONNX file.
#     data_scientist.sh steepest        or a wheel in place of the name
set -euo pipefail
package=$(realpath -q "$1" || echo "$1")
[ -e "$package" ] || package=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m venv env
env/bin/pip install -q "$package[train,sklearn,onnx]" onnxruntime
export PATH="$work/env/bin:$PATH"
echo "installed after $SECONDS s"

# Two tables: one with the answers, one without. Text, gaps, dates, numbers with a comma.
python - << 'CODE'
import numpy as np

rng = np.random.default_rng(0)
for name, rows in ("sold.csv", 400), ("new.csv", 20):
    with open(name, "w") as file:
        print("city;built;area;balcony" + (";price" if rows > 20 else ""), file=file)
        for _ in range(rows):
            city, year, area = rng.integers(3), rng.integers(1950, 2020), rng.uniform(30, 150)
            price = 1500 * (1 + city) + 40 * area + 10 * (year - 1950) + rng.normal(0, 100)
            shown = "" if rng.random() < 0.05 else f"{area:.1f}".replace(".", ",")
            row = [["Bonn", "Köln", "Mainz"][city], f"{year}-06-01", shown, rng.choice(["yes", "no"])]
            print(*row, *([f"{price:.2f}".replace(".", ",")] if rows > 20 else []), sep=";", file=file)
CODE

steepest train sold.csv --target price --out flats --quiet
steepest predict flats new.csv --out prices.csv
steepest export flats --onnx flats.onnx
ls flats

# The same predictions in Python, in ONNX, and an estimator in a search of scikit-learn.
python - << 'CODE'
import json

import numpy as np
import onnxruntime
import pandas as pd
import sklearn.datasets
from sklearn.model_selection import GridSearchCV

import steepest as st
from steepest.sklearn import Classifier

table, written = pd.read_csv("new.csv", sep=";", dtype=str), pd.read_csv("prices.csv")
model = st.models.load("flats")
values = model.predict(table)
np.testing.assert_array_equal(written.iloc[:, -1], values)

session = onnxruntime.InferenceSession("flats.onnx")
[there] = session.run(None, {"x": model.inputs(table)})
np.testing.assert_allclose(there, values, rtol=1e-6)

result = json.load(open("flats/config.json"))["results"]
print({key: value for key, value in result.items() if isinstance(value, float | dict)})

x, y = sklearn.datasets.load_iris(return_X_y=True)
grid = {"hidden": [(), (16,)], "lr": [0.003, 0.03]}
search = GridSearchCV(Classifier(), grid, cv=3, n_jobs=2).fit(x, y)
print("iris:", search.best_params_, round(search.best_score_, 3))
assert search.best_score_ > 0.9
CODE
echo "a data scientist: from install to result in $SECONDS s"
