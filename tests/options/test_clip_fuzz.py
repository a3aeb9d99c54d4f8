"""Any step of any optimizer, with everything that may stand around the rule, drawn at random: equal
to the reference to the last bit, with factors, skips and histories worked out by ``clip_factors``.
"""

import math

import numpy as np
from cases import CONFIGURATIONS, LEVELS, MATRICES_ONLY, hyper, same_bits, use_threads
from clip_factors import factors_of, memories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs
from layouts import laid_out

import steepest as st
from steepest import reference
from steepest.kernels import dispatch
from steepest.optimizers import RULES

C, F, R = st.clip, st.filters, st.regularize
SHAPES = [(), (1,), (3,), (0,), (2, 0), (1, 5), (6, 1), (4, 3), (70, 9), (2, 2100), (3, 2, 4),
          (2, 1, 3, 2), (4100,), (9001,)]  # fmt: skip
LIMITS = [1e-30, 0.05, 0.7, 3.0, math.inf, lambda t: 0.3 / (t + 1)]
ORDERS = [1.0, 2.0, math.inf, 3.0, 0.7, 900.0]

limits = hs.sampled_from(LIMITS)
# Schedule-free rules weigh by the updates of all, and global rules sum over all, so a parameter
# without a gradient is no stranger to them; their own tests step the reference accordingly.
DRAWN = [
    (rule, h)
    for rule, h in CONFIGURATIONS
    if not rule.startswith("schedulefree") and RULES[rule].needs != "global"
]
DRAWN += [(rule, hyper(rule, {"momentum": 0.83, "ns_steps": 2})) for rule in MATRICES_ONLY]
by_norm = hs.one_of(
    hs.builds(
        lambda make, limit, p: make(limit, p),
        hs.sampled_from([C.norm, C.group_norm, C.global_norm]), limits, hs.sampled_from(ORDERS),
    ),
    hs.builds(C.percentile, hs.sampled_from([0.0, 30.0, 100.0, lambda t: 10.0 * t]),
              hs.sampled_from([1, 3])),
    hs.builds(C.previous_norm, limits),
)  # fmt: skip
finite = limits.filter(lambda x: x != math.inf)
spikes = hs.builds(C.skip_spikes, hs.sampled_from([0.1, 2.0]), hs.sampled_from([1, 2, 4]))
adaptive = hs.builds(C.adaptive, finite, hs.sampled_from([1e-3, 1.0]),
                     hs.sampled_from([0, -1, None]))  # fmt: skip
optional = [hs.none(), hs.none()]
clips = hs.tuples(
    *(hs.one_of(*optional, x) for x in (spikes, by_norm, adaptive, hs.builds(C.value, limits)))
).map(lambda chosen: tuple(x for x in chosen if x))
axes, weights = hs.sampled_from([0, -1, None]), hs.sampled_from([0.0, 0.03, 0.9])
penalties = hs.lists(
    hs.one_of(
        hs.builds(R.l1, weights, hs.booleans()), hs.builds(R.l2, weights),
        hs.builds(R.elastic_net, weights, hs.just(0.3), hs.booleans()),
        hs.builds(R.decoupled, weights), hs.builds(R.toward_initial, weights, hs.booleans()),
        hs.builds(R.group_lasso, weights, axes), hs.builds(R.max_norm, weights, axes),
        hs.builds(R.non_negative), hs.just(R.box(-0.4, 0.3)), hs.builds(R.unit_norm, axes),
        hs.builds(R.simplex, hs.sampled_from([1.0, 3.7]), axes),
    ),
    max_size=3,
).map(tuple)  # fmt: skip
filters = hs.tuples(
    hs.one_of(*optional, hs.builds(F.centralize, axes)),
    hs.one_of(*optional, hs.builds(F.grokfast, hs.sampled_from([0.0, 0.7, lambda t: 1 / (t + 1)]))),
    hs.one_of(*optional, hs.builds(F.mask)),
).map(lambda chosen: tuple(x for x in chosen if x))
options = hs.fixed_dictionaries(
    {}, optional={"clip": clips, "regularize": penalties, "filter": filters, "l1": weights,
                  "maximize": hs.booleans(), "ema": hs.sampled_from([0.0, 0.9])},
)  # fmt: skip


def draw_gradient(rng, shape, dtype, data):
    scale = data.draw(hs.sampled_from([1.0, 1.0, 1.0, 1e-3, 1e3, 1e-25, 1e18]))
    g = np.asarray(rng.standard_normal(shape) * scale, dtype)
    if g.size and data.draw(hs.integers(0, 11)) == 0:
        place = tuple(int(rng.integers(n)) for n in g.shape)
        g[place] = data.draw(hs.sampled_from([np.nan, np.inf, -np.inf]))
    return g


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=hs.data())
def test_any_step_equals_the_reference(data):
    rule, arguments = data.draw(hs.sampled_from(DRAWN))
    dtype = data.draw(hs.sampled_from([np.float32, np.float64]))
    shapes = data.draw(hs.lists(hs.sampled_from(SHAPES), min_size=1, max_size=6))
    rng = np.random.default_rng(data.draw(hs.integers(0, 9)))
    dispatch.use(data.draw(hs.sampled_from(LEVELS)))
    use_threads(data.draw(hs.integers(1, 4)))
    layouts = hs.sampled_from(["C", "C", "F", "reversed", "strided"])
    start = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    named = {f"p{i}": laid_out(x, data.draw(layouts)) for i, x in enumerate(start)}
    params, extra = named, data.draw(options)
    cut = data.draw(hs.integers(0, len(shapes)))
    grouped = 0 < cut < len(shapes)
    if grouped:
        own = data.draw(options)
        names = list(named)
        params = [
            {"params": {k: named[k] for k in names[:cut]}},
            {"params": {k: named[k] for k in names[cut:]}, **own},
        ]
    if data.draw(hs.booleans()):
        extra["overrides"] = {"p[13]": data.draw(options)} if len(shapes) > 1 else {}
    if data.draw(hs.booleans()):
        vectors = any(len(shape) < 2 for shape in shapes)  # else there is nothing to exclude
        either = ["vectors", "p0", ["p0", "vectors"]] if vectors else ["p0"]
        extra["exclude"] = data.draw(hs.sampled_from(either))
    policy = data.draw(hs.sampled_from(["propagate", "propagate", "skip", "raise"]))
    opt = RULES[rule](params, **arguments, **extra, nonfinite=policy)
    given_as = [0 if not grouped or int(g["param_names"][0][1:]) < cut else 1
                for g in opt.param_groups]  # fmt: skip
    order = [int(name[1:]) for g in opt.param_groups for name in g["param_names"]]
    group = [g for g in opt.param_groups for _ in g["params"]]
    for state in opt.state.values():
        if "mask" in state:
            state["mask"][...] = rng.random(state["mask"].shape) < 0.7
        if "hessian" in state:
            state["hessian"][...] = rng.standard_normal(state["hessian"].shape)
    twins = {i: start[i].copy() for i in order}
    states = {i: {k: np.array(x) for k, x in opt.state[f"p{i}"].items()} for i in order}
    history, count, skipped = {}, 0, 0
    for _ in range(data.draw(hs.integers(1, 4))):
        grads = {
            i: None if data.draw(hs.integers(0, 6)) == 0 else draw_gradient(rng, s, dtype, data)
            for i, s in enumerate(shapes)
        }
        handed = {f"p{i}": None if g is None else laid_out(g, data.draw(layouts))
                  for i, g in grads.items()}  # fmt: skip
        kept = {k: None if g is None else g.copy() for k, g in handed.items()}
        tree = handed
        if grouped:
            tree = [{k: handed[k] for k in names[:cut]}, {k: handed[k] for k in names[cut:]}]
        in_order = [grads[i] for i in order]
        with np.errstate(all="ignore"):
            bad = any(g is not None and not np.isfinite(g).all() for g in in_order)
            factors, fresh, spike = factors_of(opt, given_as, in_order, history, count)
            left = (bad and policy != "propagate") or spike
            try:
                opt.step(tree)
                assert not (bad and policy == "raise")
            except FloatingPointError:
                assert bad and policy == "raise"
                fresh = {}
            if left:
                fresh = {c: x for c, x in fresh.items() if type(c) is C.skip_spikes}
                skipped += not (bad and policy == "raise")
            else:
                for i, factor, own in zip(order, factors, group, strict=True):
                    if grads[i] is None:
                        continue
                    hyper = {k: x for k, x in own.items() if k in opt._rule_of(own).defaults}
                    states[i]["step"] += 1
                    t = int(states[i]["step"])
                    goes_by = own.get("rule", rule)
                    reference.step(goes_by, twins[i], grads[i], states[i], t, **hyper,
                                   factor=factor, count=count, name=f"p{i}")  # fmt: skip
                count += 1
        history |= fresh
        for name, g in handed.items():
            if g is not None:
                same_bits(g, kept[name], "the caller's gradient")
    assert (opt.updates, opt.skipped) == (count, skipped)
    assert list(opt.clip_history.values()) == [history[c] for c in memories(opt) if c in history]
    for i in order:
        same_bits(named[f"p{i}"], twins[i], f"parameter {i}")
        for key, x in opt.state[f"p{i}"].items():
            same_bits(np.asarray(x), states[i][key], f"state {key} of {i}")
