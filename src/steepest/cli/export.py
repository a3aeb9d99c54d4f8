"""``steepest export``: a trained model in the form of other runtimes."""

import argparse
from pathlib import Path
from typing import Any

from steepest.cli import arguments as options
from steepest.cli import folders
from steepest.cli.errors import UsageError
from steepest.models.trained import RunError, load


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = options.command(
        commands,
        "export",
        help="write what steepest train has trained as an ONNX file",
        description=(
            "Writes the model of a training run, with the scaling of its inputs and of its target, "
            "as an ONNX file. The input x has the columns of the training as numbers, categories "
            "one-hot, in the order that is printed; the outputs are label and probabilities or, "
            "for a regression, value."
        ),
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="the folder of a training run")
    parser.add_argument(
        "--onnx", required=True, metavar="FILE", type=Path, help="the file to write"
    )
    parser.add_argument(
        "--dtype",
        choices=["float64", "float32"],
        default="float64",
        help="of the input (default: float64)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the file and returns the exit code."""
    try:
        model = load(arguments.folder)
    except RunError as error:
        raise UsageError(str(error)) from None
    with folders.replacing(arguments.onnx) as part:
        try:
            model.to_onnx(part, dtype=arguments.dtype)
        except ValueError as error:
            raise UsageError(f"{arguments.folder}: {error}") from None
    outputs = "value" if model.classes is None else "label, probabilities"
    n = model.net.sizes[0]
    print(f"written to {arguments.onnx}: x ({n} inputs, {arguments.dtype}) -> {outputs}")
    if model.encoder is not None:
        print("inputs     " + ", ".join(model.encoder.inputs))
    return 0
