"""A trained model with all that its predictions need, from the folder of a run.

The folder is one that ``steepest train`` has written. ``config.json`` says what the model is, and
which columns it was trained on; ``params.npz`` has its parameters, the scaling of the data and the
labels of the classes.
"""

import json
import math
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steepest.memory.arrays import Array, unmasked
from steepest.models.columns import Columns, NotANumber
from steepest.models.networks import MLP, Params
from steepest.models.onnx_export import onnx_bytes

__all__ = ["RunError", "SampleError", "TrainedModel", "load"]

CONFIG = "config.json"
ARRAYS = "params.npz"


class RunError(ValueError):
    """A folder that is not that of a run, or that lacks something; the message says what."""


class SampleError(ValueError):
    """A sample that has no prediction, since it has a number that is not finite or far too large.

    row: the index of the sample. column: the name of the column with that number, None where it is
    all of them together. reason: what is wrong, without the place.

    >>> print(SampleError(2, "a", 1e300))
    x[2, 'a'] is 1e+300, which is too far from the numbers of the training
    """

    def __init__(
        self,
        row: int,
        column: str | None = None,
        value: Any = math.nan,
        expected: str = "a finite number",
    ) -> None:
        # So that a copy in another process is the same.
        super().__init__(row, column, value, expected)
        self.row, self.column = row, column
        if not isinstance(value, (int, float)):
            self.reason = f"is {value!r}, where {expected} is needed"
        elif column is None:
            self.reason = "has numbers that are too far from those of the training"
        elif math.isfinite(value):
            self.reason = f"is {value}, which is too far from the numbers of the training"
        else:
            self.reason = f"is {value}, where {expected} is needed"

    def __str__(self) -> str:
        place = "" if self.column is None else f", {self.column!r}"
        return f"x[{self.row}{place}] {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class TrainedModel:
    """A model that takes inputs and gives predictions in the units of the data.

    net: the ``MLP``, whose inputs are scaled and whose outputs are too.
    params: its parameters, as any optimizer takes them.
    columns: the names of the inputs, in their order.
    classes: the labels of the classes, as they were in the target: numbers, true/false or text;
        None for a regression.
    scaling: the arrays x_mean and x_scale, of one number per input, and y_mean and y_scale, single
        numbers, for a regression: x = (raw - x_mean) / x_scale, raw = y y_scale + y_mean.
    target: the name of the column that is predicted, None for the digits.
    encoder: how the columns of a table become the inputs, where they are not numbers alone, or may
        be missing; None where each column is an input.

    Inputs x are an array of shape (samples, inputs), or columns with names in any order, of which
    further ones are ignored: a mapping, a table of pandas or another package, or a structured array
    of NumPy. They are numbers or true/false, and finite. With an encoder they may be text, dates
    and missing, too; a column that is not there counts as missing in each row, and a value that the
    training had not as none of the categories: a UserWarning says so.

    >>> net = MLP((2, 1), "regression")
    >>> params = {"layer1": {"weight": np.array([[2.0], [-1.0]]), "bias": np.array([0.5])}}
    >>> scaling = {"x_mean": np.zeros(2), "x_scale": np.ones(2)}
    >>> scaling |= {"y_mean": np.array(10.0), "y_scale": np.array(4.0)}
    >>> model = TrainedModel(net, params, ("a", "b"), None, scaling, "y")
    >>> model
    TrainedModel(regression of 'y' by 2 inputs)
    >>> model.predict([[1.0, 2.0], [0.0, 0.0]])
    array([12., 12.])
    >>> model.predict({"b": [2.0], "a": [1.0], "another": ["text"]})
    array([12.])
    """

    net: MLP
    params: Params
    columns: tuple[str, ...]
    classes: Array | None
    scaling: dict[str, Array]
    target: str | None = None
    encoder: Columns | None = None

    def __repr__(self) -> str:
        what = "" if self.target is None else f" of {self.target!r}"
        kinds = "" if self.classes is None else f", {len(self.classes)} classes"
        inputs = f"{len(self.columns)} input{'s' * (len(self.columns) != 1)}"
        return f"{type(self).__name__}({self.net.task}{what} by {inputs}{kinds})"

    def predict(self, x: Any) -> Array:
        """The label of the likeliest class, or the value, of each sample.

        x: raw inputs, not scaled. Returns an array of shape (samples,).

        Raises TypeError for inputs that are not numbers, where there is no encoder; ValueError for
        another number of columns or a column that is missing; SampleError, a ValueError, for
        numbers that are not finite or far too large, and for text where an encoder needs a number.
        """
        found = self.net.predicted(self._outputs(x))
        if self.classes is not None:
            labels: Array = self.classes[found]
            return labels
        value: Array = found * self.scaling["y_scale"] + self.scaling["y_mean"]
        return value

    def predict_proba(self, x: Any) -> Array:
        """The probability of each class, of shape (samples, classes), in the order of ``classes``.

        Raises ValueError for a regression; raises as ``predict`` otherwise.

        >>> net = MLP((1, 1), "classification")
        >>> params = net.initial(0) | {"layer1": {"weight": np.ones((1, 1)), "bias": np.zeros(1)}}
        >>> scaling = {"x_mean": np.array([3.0]), "x_scale": np.array([2.0])}
        >>> model = TrainedModel(net, params, ("a",), np.array(["no", "yes"]), scaling)
        >>> model.predict_proba([[3.0]]), model.predict([[3.0], [5.0]])
        (array([[0.5, 0.5]]), array(['no', 'yes'], dtype='<U3'))
        """
        if self.classes is None:
            raise ValueError("a regression has no classes; use predict")
        return self.net.probabilities(self._outputs(x))

    def inputs(self, x: Any) -> Array:
        """The numbers that x becomes, before they are scaled: float64 of shape (samples, inputs).

        x: as for ``predict``; raises as it does where they are not numbers or columns are missing.
        """
        return self._raw(x)

    def to_onnx(
        self, path: str | os.PathLike[str], *, dtype: Literal["float64", "float32"] = "float64"
    ) -> None:
        """Writes the model with its scaling as an ONNX file, for other runtimes and languages.

        dtype: of the input, which is named x, and has the shape (samples, inputs): what ``inputs``
            gives, so numbers, of tables with categories, too.

        A regression has the output value, float64 of shape (samples,). A classification has label,
        the label of the likeliest class, and probabilities, of shape (samples, classes). They are
        those of ``predict`` and ``predict_proba``, up to rounding; but nothing is refused: where an
        input is not finite, neither are value and probabilities. The file's metadata are task,
        inputs (their names, in JSON) and target.

        Raises ValueError for another dtype, and for labels that ONNX has no type for; MissingExtra
        without the package onnx; OSError where the file cannot be written.

        >>> import tempfile
        >>> net = MLP((2, 1), "regression")
        >>> params = {"layer1": {"weight": np.array([[2.0], [-1.0]]), "bias": np.array([0.5])}}
        >>> scaling = {"x_mean": np.zeros(2), "x_scale": np.ones(2)}
        >>> scaling |= {"y_mean": np.array(10.0), "y_scale": np.array(4.0)}
        >>> path = os.path.join(tempfile.mkdtemp(), "line.onnx")
        >>> TrainedModel(net, params, ("a", "b"), None, scaling, "y").to_onnx(path)
        >>> import onnx.reference
        >>> onnx.reference.ReferenceEvaluator(path).run(None, {"x": np.array([[1.0, 2.0]])})
        [array([12.])]
        """
        names = self.columns if self.encoder is None else self.encoder.inputs
        content = onnx_bytes(
            self.net, self.params, self.scaling, self.classes, names, self.target, dtype
        )
        Path(path).write_bytes(content)

    @np.errstate(over="ignore", under="ignore", invalid="ignore")
    def _outputs(self, x: Any) -> Array:
        """The outputs of the last layer. Raises SampleError where they are not finite."""
        raw = self._raw(x)
        inputs = ((raw - self.scaling["x_mean"]) / self.scaling["x_scale"]).astype(np.float32)
        wrong = np.argwhere(~np.isfinite(inputs))
        if len(wrong):
            row, column = map(int, wrong[0])
            names = self.columns if self.encoder is None else self.encoder.origins
            raise SampleError(row, names[column], float(raw[row, column]))
        outputs = self.net.activations(self.params, inputs)[-1]
        wrong = np.argwhere(~np.isfinite(outputs))
        if len(wrong):
            raise SampleError(int(wrong[0, 0]))
        return outputs

    def _raw(self, x: Any) -> Array:
        """The inputs as float64 of shape (samples, inputs)."""
        named = _columns(x)
        if self.encoder is not None:
            return self._encoded(x, named)
        if named is None:
            raw = _numbers(x, "x")
            if raw.ndim != 2 or raw.shape[1] != len(self.columns):
                hint = "; give x[None] for one sample" if raw.shape == (len(self.columns),) else ""
                raise ValueError(
                    f"x has shape {raw.shape}: expected (samples, {len(self.columns)}), a column "
                    f"for each of {_listed(self.columns)}{hint}"
                )
            return raw
        missing = [name for name in self.columns if name not in named]
        if missing:
            raise ValueError(f"x has no column {_listed(missing)}; it has {_listed(named)}")
        found = [_numbers(x[name], f"x[{name!r}]") for name in self.columns]
        for name, column in zip(self.columns, found, strict=True):
            if column.ndim != 1 or len(column) != len(found[0]):
                raise ValueError(
                    f"x[{name!r}] has shape {column.shape}: expected one number for each sample, "
                    f"as many as {self.columns[0]!r} has"
                )
        return np.stack(found, axis=1)

    def _encoded(self, x: Any, named: list[Any] | None) -> Array:
        """The inputs that the columns of a table become. Raises SampleError, ValueError."""
        encoder = self.encoder
        if named is None:
            found = np.asarray(x, object)
            if found.ndim != 2 or found.shape[1] != len(self.columns):
                raise ValueError(
                    f"x has shape {found.shape}: expected (samples, {len(self.columns)}), a column "
                    f"for each of {_listed(self.columns)}, or a table with these names"
                )
            x = {name: found[:, i].tolist() for i, name in enumerate(self.columns)}
            named = list(self.columns)
        table = {name: x[name] for name in named if name in self.columns}
        assert encoder is not None
        try:
            inputs, notes = encoder.encoded(table)
        except NotANumber as error:
            raise SampleError(error.row, error.column, error.value, error.expected) from None
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=4)
        return inputs


def _columns(x: Any) -> list[Any] | None:
    """The names of the columns of x; None if it is an array without."""
    if isinstance(x, Mapping):
        return list(x)
    if isinstance(x, np.ndarray):
        return None if x.dtype.names is None else list(x.dtype.names)
    return list(x.columns) if hasattr(x, "columns") else None


def _numbers(x: Any, what: str) -> Array:
    """An array as float64. Raises TypeError for what holds anything but real numbers."""
    try:
        found = np.asarray(unmasked(x, what))
    except ValueError:  # rows of different lengths
        raise ValueError(f"{what} has rows of different lengths") from None
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{what} has dtype {found.dtype}: expected numbers or true/false")
    return found.astype(np.float64)


def _listed(names: Sequence[Any], most: int = 8) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*map(repr, names[:most]), *more])


def load(run: str | os.PathLike[str]) -> TrainedModel:
    """The trained model of a run of ``steepest train``, from the folder that it has written.

    run: the folder, also of a run that was interrupted; its parameters are those whose results the
    run has told, which are those of the epoch with the lowest validation loss. ``steepest tune``
    writes such a folder, too: ``best`` in its own.

    Raises RunError, a ValueError, for a folder that is not that of a run, for parameters that are
    not there yet, are not finite or do not fit the model, and for runs of earlier versions that
    lack something; the message says what.

    >>> import contextlib, io, tempfile
    >>> from steepest import cli
    >>> run = os.path.join(tempfile.mkdtemp(), "run")
    >>> with contextlib.redirect_stdout(io.StringIO()):
    ...     _ = cli.main(["train", "digits", "--epochs", "5", "--quiet", "--out", run])
    >>> model = load(run)
    >>> model, model.net.sizes
    (TrainedModel(classification by 64 inputs, 10 classes), (64, 256, 10))
    >>> from sklearn.datasets import load_digits
    >>> from steepest.models import accuracy
    >>> x, y = load_digits(return_X_y=True)
    >>> model.predict(x).shape, accuracy(model.predict(x), y) > 0.9
    ((1797,), True)
    """
    folder = Path(run)
    record = _record(folder)
    net = _network(folder, record)
    arrays = _arrays(folder)
    try:
        params = {
            f"layer{i}": {
                "weight": _shaped(arrays, f"layer{i}.weight", sizes),
                "bias": _shaped(arrays, f"layer{i}.bias", sizes[1:]),
            }
            for i, sizes in enumerate(pairwise(net.sizes), 1)
        }
        inputs = net.sizes[:1]
        scaling = {name: _shaped(arrays, name, inputs) for name in ("x_mean", "x_scale")}
        if net.task == "regression":
            scaling |= {name: _shaped(arrays, name, ()) for name in ("y_mean", "y_scale")}
            classes = None
        else:
            classes = _shaped(arrays, "classes", (max(2, net.sizes[-1]),))
    except KeyError as error:
        raise RunError(
            f"{folder / ARRAYS} lacks the array {error}, as in runs of an earlier version; train "
            "again"
        ) from None
    except ValueError as error:
        raise RunError(f"{folder / ARRAYS} does not fit {CONFIG}: {error}") from None
    numbers = [*scaling.values(), *(x for layer in params.values() for x in layer.values())]
    if not all(np.isfinite(x).all() for x in numbers):
        raise RunError(
            f"{folder / ARRAYS} has numbers that are not finite: the run diverged; train again "
            "with a smaller --lr"
        )
    encoder = _encoder(folder, record)
    columns = tuple(record["features"]) if encoder is None else encoder.names
    return TrainedModel(net, params, columns, classes, scaling, record["target"], encoder)


def _record(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises RunError."""
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = f"no {CONFIG} in it" if folder.exists() else "no such folder"
        raise RunError(f"{folder}: there is {there}; give the folder of a training run") from None
    except NotADirectoryError:
        raise RunError(f"{folder} is not a folder; give that of a training run") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise RunError(f"{path} is not the JSON of a run") from None
    command = record.get("command") if isinstance(record, dict) else None
    if command != "train":
        hint = f"; give {folder / 'best'}" if command == "tune" else ""
        raise RunError(f"{path} is not that of steepest train{hint}")
    return dict(record)


def _network(folder: Path, record: Mapping[str, Any]) -> MLP:
    """The model that config.json describes. Raises RunError."""
    path = folder / CONFIG
    needed = ["network", "task", "loss", "features", "target"]
    needed += ["delta"] if record.get("loss") == "huber" else []
    missing = [name for name in needed if name not in record]
    if missing:
        raise RunError(
            f"{path} lacks {_listed(missing)}, as in runs of an earlier version; train again"
        )
    sizes, features = record["network"], record["features"]
    delta = record["delta"] if "delta" in needed else 1.0
    try:
        net = MLP(tuple(sizes), record["task"], record["loss"], delta)
        if len(features) != sizes[0] or not all(isinstance(x, str) for x in features):
            raise ValueError(f"features = {features}: expected {sizes[0]} names")
        return net
    except (TypeError, ValueError) as error:
        raise RunError(f"{path} does not say what the run is made of: {error}") from None


def _encoder(folder: Path, record: Mapping[str, Any]) -> Columns | None:
    """How the columns of a table become the inputs. Raises RunError."""
    if record.get("columns") is None:  # as in runs of tables of numbers, and earlier ones
        return None
    try:
        found = Columns.from_json(record["columns"])
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(
            f"{folder / CONFIG} does not say how its columns are read: {error}"
        ) from None
    if found.inputs != record["features"]:
        raise RunError(f"{folder / CONFIG}: its columns do not make its features")
    return found


def _arrays(folder: Path) -> dict[str, Array]:
    """What is in params.npz. Raises RunError."""
    path = folder / ARRAYS
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise RunError(
            f"{path}: there is no such file: the run is not done; finish it with  steepest train "
            f"--resume {shlex.quote(str(folder))}"
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception:  # whatever the readers of zip archives and arrays say of damaged ones
        raise RunError(f"{path} is damaged; train again") from None


def _shaped(arrays: Mapping[str, Array], name: str, shape: Sequence[int]) -> Array:
    """An array of this name. Raises KeyError or ValueError unless it has that shape, and floats
    unless it is that of the classes."""
    x = arrays[name]
    if x.shape != tuple(shape):
        raise ValueError(f"{name} has shape {x.shape}: expected {tuple(shape)}")
    if name != "classes" and x.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {x.dtype}: expected floats")
    return x
