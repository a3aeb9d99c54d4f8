"""
Paths in a valley and among hills
=================================

Four rules go down two functions of two variables, from the same points. Rosenbrock's function has
one minimum, at the end of a curved valley. Rastrigin's has one in every unit square, and the lowest
of them at 0. Needs ``pip install ".[train]"``.
"""

import matplotlib.pyplot as plt
import numpy as np

import steepest as st


def rosenbrock(x, y):
    slopes = [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2, slopes


def rastrigin(x, y):
    z = np.array([x, y])
    slopes = 2 * z + 20 * np.pi * np.sin(2 * np.pi * z)
    return 20 + (z * z - 10 * np.cos(2 * np.pi * z)).sum(axis=0), slopes


def path(function, start, make, steps):
    """The points that an optimizer passes, one a row."""
    p = np.array(start)
    optimizer = make(p)
    points = [p.copy()]
    for _ in range(steps):
        optimizer.step(np.array(function(*p)[1]))
        points.append(p.copy())
    return np.array(points)


# %%
# A rule is a class: it takes the array that it is to change in place, and its learning rate. The
# rates are those that suit the slopes of each function.

functions = {
    rosenbrock: ((-1.5, 1.8), (-2, -0.8), (1.7, 2.6), (1, 1)),
    rastrigin: ((3.4, -2.6), (-1, -3.6), (4.2, 1), (0, 0)),
}
rules = {
    "SGD": [lambda p: st.SGD(p, lr=7e-4), lambda p: st.SGD(p, lr=2e-3)],
    "SGD with momentum": [
        lambda p: st.SGD(p, lr=7e-4, momentum=0.9),
        lambda p: st.SGD(p, lr=5e-3, momentum=0.9),
    ],
    "Adam": [lambda p: st.Adam(p, lr=0.1), lambda p: st.Adam(p, lr=0.1)],
    "Rprop": [lambda p: st.Rprop(p, lr=0.1), lambda p: st.Rprop(p, lr=0.1)],
}
figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
heights = {name: [] for name in rules}
for k, (function, (start, low, high, minimum)) in enumerate(functions.items()):
    x, y = np.meshgrid(*[np.linspace(a, b, 300) for a, b in zip(low, high, strict=True)])
    axes[k].contourf(x, y, np.log1p(function(x, y)[0]), levels=14, cmap="Greys", alpha=0.6)
    for name, make in rules.items():
        points = path(function, start, make[k], steps=400)
        heights[name].append(function(*points[-1])[0])
        [line] = axes[k].plot(*points.T, linewidth=1.2, label=name)
        axes[k].plot(*points[-1], "o", color=line.get_color())
    axes[k].plot(*start, "ks", label="start")
    axes[k].plot(*minimum, "k*", markersize=12, label="minimum")
    axes[k].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), title=function.__name__.title())
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
plt.show()

# %%
# A dot is where a path ends. In the valley, plain gradient descent is the slowest: the steep walls
# forbid it the rate that the flat floor needs. Among the hills, three rules stay in the hollow
# where they begin, and only momentum rolls over some hills, to a lower one. None of them looks for
# the lowest: begin from several points, and take the best.

print(f"{'height after 400 steps':22}  Rosenbrock  Rastrigin")
for name, (one, two) in heights.items():
    print(f"{name:22}  {one:10.2g}  {two:9.3g}")
