"""What clips by norms come to, worked out in a few lines: factors, histories, skipped steps."""

import math

import numpy as np

from steepest import reference
from steepest.options import clip as C


def straight(known, q):
    """The percentile, on straight lines."""
    place = (len(known) - 1) * q / 100.0
    low, high = known[math.floor(place)], known[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def factors_of(opt, given, grads, history, count):
    """(Factor of each gradient, fresh histories, why it is skipped); `given` numbers the groups."""
    groups = [
        (as_tuple(g["clip"]), given[k]) for k, g in enumerate(opt.param_groups) for _ in g["params"]
    ]
    factors, fresh, reason = [1.0] * len(grads), {}, False
    known = [C.value, C.adaptive]
    different = {c: None for own, _ in groups for c in own if type(c) not in known}
    for c in sorted(different, key=lambda c: type(c) is not C.skip_spikes):
        own = [i for i, (x, _) in enumerate(groups) if c in x]
        order = getattr(c, "p", 2.0)
        of = {C.norm: lambda i: i, C.group_norm: lambda i: groups[i][1]}.get(type(c), lambda i: 0)
        past = history.get(c, [])
        for part in {of(i): None for i in own}:
            members = [i for i in own if of(i) == part]
            gs = [np.zeros(0) if grads[i] is None else grads[i] for i in members]
            norm = reference.norm(gs, order)[0]
            now = [*past, norm] if math.isfinite(norm) else past
            if type(c) is C.skip_spikes:
                if 2 * len(past) >= c.window:
                    deviation = np.std(past) if len(past) > 1 else 0.0
                    reason = reason or bool(norm > (np.mean(past) + c.sigma * deviation))
                fresh[c] = now[-c.window :]
                continue
            if type(c) is C.percentile:
                fresh[c] = now[-c.window :]
                limit = straight(sorted(fresh[c]), c.at("q", count)) if fresh[c] else math.inf
            elif type(c) is C.previous_norm:
                fresh[c] = now[-1:]
                limit, norm = c.at("max_norm", count), past[-1] if past else norm
            else:
                limit = c.at("max_norm", count)
            ratio = float(limit) / (norm + 1e-6)
            for i in members:
                factors[i] = ratio if ratio < 1.0 else 1.0
    return factors, fresh, reason


def as_tuple(clip):
    """The value of ``clip=`` as a tuple of clips."""
    return clip if isinstance(clip, tuple) else (clip,) if clip else ()


def memories(opt):
    """The clips that keep a history, in the order of `clip_history`."""
    known = [C.skip_spikes, C.percentile, C.previous_norm]
    found = {c: None for g in opt.param_groups for c in as_tuple(g["clip"]) if type(c) in known}
    return sorted(found, key=lambda c: type(c) is not C.skip_spikes)
