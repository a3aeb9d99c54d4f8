"""Bugs of states, state dicts, copies and checkpoint files."""

import copy
import json
import pickle

import numpy as np
import pytest
from museum import fails_with

import steepest as st
from steepest.checkpoint import CheckpointError, atomic, container

DICTS = "core/state_dicts.py"
CONTAINER = "checkpoint/container.py"


def grads_at(t, shape=(3,)):
    return np.full(shape, 0.5 - t % 3)


def trained(w, steps, cls=st.AdamW, **arguments):
    opt = cls(w, **arguments)
    for t in range(steps):
        opt.step(grads_at(t, w.shape))
    return opt


@fails_with(
    DICTS,
    "            dtype = program.state_type(key, p)  # x may have one that is equal, but "
    "not the same\n",
    "            dtype = p.dtype\n",
)
def test_pytorch_43706_loading_does_not_cast_states():
    """Loading made states of the parameter's type, and what they had more of digits was lost
    (pytorch/pytorch#43706)."""
    w = np.ones(3, np.float16)
    opt = trained(w, 3)
    saved = opt.state_dict()
    other = st.AdamW(w.copy())
    other.load_state_dict(saved)
    for key in ("exp_avg", "exp_avg_sq"):
        assert other.state["0"][key].dtype == np.float32
        assert np.array_equal(other.state["0"][key], opt.state["0"][key])


@fails_with(
    DICTS,
    "        return self._state_dict(np.array)\n",
    "        return self._state_dict(np.asarray)\n",
)
def test_pytorch_196083_a_state_dict_is_a_copy():
    """What state_dict gave was the live state: a second optimizer that loaded it shared it with the
    first (pytorch/pytorch#196083)."""
    opt = trained(np.ones(3), 2)
    saved = opt.state_dict()
    before = repr(saved)
    opt.step(np.ones(3))
    opt.param_groups[0]["lr"] = 7.0
    assert repr(saved) == before


@fails_with(
    DICTS,
    "            state[key] = (arrays if files is None else files).zeros_like(p, dtype=dtype)\n"
    "            state[key][...] = x\n",
    "            state[key] = given[key]\n",
)
def test_pytorch_147288_two_optimizers_do_not_share_what_was_loaded():
    """Loading put the tensors of the dict in the place of the optimizer's own
    (pytorch/pytorch#147288); two that loaded one dict would share it."""
    saved = trained(np.ones(3), 2).state_dict()
    before = repr(saved)
    a, b = st.AdamW(np.ones(3)), st.AdamW(np.ones(3))
    a.load_state_dict(saved)
    b.load_state_dict(saved)
    a.step(np.ones(3))
    assert repr(saved) == before and repr(b.state_dict()) == repr(saved)


@fails_with(
    "memory/arrays.py",
    "    if own.dtype != dtype or own.shape != p.shape:\n        raise",
    "    if own.dtype != dtype:\n        raise",
)
@pytest.mark.parametrize("shape", [(4,), (0,), (64, 63), (4096, 2)], ids=str)
def test_tt_metal_53212_a_state_of_another_shape_is_refused(shape):
    """The shapes of states were not checked, and a kernel read beyond the end of one that was too
    small (tenstorrent/tt-metal#53212)."""
    w = np.ones((64, 64))
    opt = st.Adam(w)
    saved = opt.state_dict()
    saved["state"]["0"]["exp_avg"] = np.zeros(shape)
    with pytest.raises(ValueError, match="'exp_avg' of parameter '0' is float64 of shape"):
        opt.load_state_dict(saved)
    opt.state["0"]["exp_avg"] = np.zeros(shape)
    with pytest.raises(ValueError, match="'exp_avg' of parameter '0' is float64 of shape"):
        opt.step(np.ones((64, 64)))
    assert (w == 1).all()


@fails_with("checkpoint/__init__.py", 'a | {"param_names": b["param_names"]}', "a")
def test_pytorch_1489_arrays_are_matched_by_name(tmp_path):
    """States went to parameters by their place in the list; a model whose layers stood in another
    order got them exchanged (pytorch/pytorch#1489)."""
    params = {"a": np.ones(3), "b": np.full(3, 2.0)}
    opt = st.Adam(params)
    opt.step({"a": np.ones(3), "b": np.full(3, -4.0)})
    st.save(tmp_path / "c", opt)
    turned = {"b": np.zeros(3), "a": np.zeros(3)}
    other = st.Adam(turned)
    st.load(tmp_path / "c", other)
    assert np.array_equal(turned["a"], params["a"]) and np.array_equal(turned["b"], params["b"])
    for name in params:
        assert np.array_equal(other.state[name]["exp_avg"], opt.state[name]["exp_avg"])


@fails_with("core/groups.py", '            "_names": [*self._names, *state],\n', "")
def test_pytorch_53712_a_group_that_comes_late():
    """Adagrad made its states when it was made, and had none for a group that was added later
    (pytorch/pytorch#53712)."""
    a, b = np.ones(2), np.ones(3)
    opt = st.Adagrad([{"params": a}], lr=0.5, initial_accumulator_value=0.25)
    opt.step([np.ones(2)])
    opt.add_param_group({"params": b, "lr": 0.25})
    opt.step([None, np.ones(3)])
    assert opt.state["1"]["sum"].tolist() == [1.25] * 3 and (b < 1).all()


def resumed_after(n, whole, folder, **arguments):
    """The parameter after `whole` steps, of which n were done before a file was written."""
    w = np.ones(3)
    opt = trained(w, n, **arguments)
    st.save(folder / "c", opt)
    w, opt = np.zeros(3), None
    opt = st.AdamW(w, **arguments)
    st.load(folder / "c", opt)
    for t in range(n, whole):
        opt.step(grads_at(t))
    return w


@fails_with(
    DICTS,
    'state = WatchedDict({"step": counter(np.array(given["step"]), name)}, self._changes)',
    'state = WatchedDict({"step": counter(0, name)}, self._changes)',
)
def test_deepspeed_562_a_resumed_run_knows_its_step(tmp_path):
    """A run ended with the error that its optimizer had lost track of its step count
    (deepspeedai/DeepSpeed#562). Here the count comes back from the file."""
    whole = np.ones(3)
    trained(whole, 8)
    for n in range(9):
        assert np.array_equal(resumed_after(n, 8, tmp_path), whole), n


@fails_with(DICTS, '            "_updates": updates,\n', "")
def test_deepspeed_4344_a_resumed_run_knows_its_schedule(tmp_path):
    """After resuming, the rate of a cosine schedule stayed where it was when the file was written
    (deepspeedai/DeepSpeed#4344)."""
    options = {"lr": st.schedules.cosine(0.5, steps=9), "weight_decay": 0.1}
    whole = np.ones(3)
    trained(whole, 8, **options)
    for n in (1, 4, 7):
        assert np.array_equal(resumed_after(n, 8, tmp_path, **options), whole), n


@fails_with(
    "checkpoint/__init__.py",
    "        for key, x in own.items():\n            if",
    "        for key, x in [*own.items()][:2]:\n            if",
)
def test_trentorch_187_every_state_is_saved(tmp_path):
    """Checkpoints held buffers of momentum and no others: both moments of Adam and its step count
    were lost (TrenTorch/TrenTorch#187)."""
    for cls in (st.Adam, st.AdEMAMix, st.Adan, st.RMSprop, st.LAMB, st.Adafactor):
        opt = trained(np.ones((3, 4)), 3, cls)
        st.save(tmp_path / "c", opt)
        found = st.checkpoint.read(tmp_path / "c").state_dict["state"]["0"]
        assert repr(found) == repr(opt.state_dict()["state"]["0"])


@fails_with(
    DICTS,
    '        usual = {"convention"',
    '        loaded = dict(loaded) | {"lr": group["lr"]}\n        usual = {"convention"',
)
def test_mlx_1264_a_loaded_state_is_not_made_anew():
    """A state that was given to a new optimizer was replaced by a fresh one at the first step, in
    silence (ml-explore/mlx#1264); here also the hyper-parameters in it."""
    w = np.ones(3)
    opt = trained(w, 4, lr=0.25)
    twin = w.copy()
    other = st.AdamW(twin, lr=0.5)
    other.load_state_dict(opt.state_dict())
    opt.step(np.ones(3))
    other.step(np.ones(3))
    assert np.array_equal(w, twin) and other.param_groups[0]["lr"] == 0.25


@fails_with(
    DICTS,
    "        made.__setstate__(copy.deepcopy(kept, memo))\n",
    "        made.__setstate__(copy.copy(kept))\n",
)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_skorch_317_a_copy_is_whole_and_its_own(way):
    """After a deep copy, training did not move the weights of the copy: its optimizer had others
    (skorch-dev/skorch#317)."""
    w = np.ones(3)
    opt = trained(w, 3)
    other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
    twin = other.param_groups[0]["params"][0]
    assert not np.shares_memory(w, twin)
    before = w.copy()
    other.step(grads_at(3))
    assert np.array_equal(w, before) and not np.array_equal(twin, w)
    opt.step(grads_at(3))
    assert np.array_equal(w, twin) and repr(opt.state_dict()) == repr(other.state_dict())


@fails_with(
    DICTS,
    '        usual = {"convention": next(iter(rule.conventions), None)}\n        known = '
    "GROUP_OPTIONS | usual",
    "        usual = {}\n        known = usual",
)
def test_pytorch_68733_a_state_dict_without_the_newer_options_is_loaded():
    """Checkpoints from before an option came lacked its key, and the first step after loading
    failed (pytorch/pytorch#68733, of `maximize`)."""
    opt = trained(np.ones(3), 2)
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        for key in ("cautious", "lookahead", "average", "filter", "convention", "rounding"):
            del group[key]
    st.AdamW(np.ones(3)).load_state_dict(saved)


class Stop(Exception):
    pass


@fails_with(
    "checkpoint/atomic.py",
    '    temporary = os.path.join(folder, f".{mark}-{secrets.token_hex(8)}.tmp")\n',
    "    temporary = target\n    with contextlib.suppress(OSError):\n        os.unlink(target)\n",
)
def test_lightning_19970_an_error_while_saving_leaves_the_old_file(tmp_path):
    """A job that was killed while it saved left half a file; that was mended, and the mend was lost
    later (Lightning-AI/pytorch-lightning#688 and #19970). Here an error ends the save."""
    path = tmp_path / "c"
    st.save(path, trained(np.ones(3), 1))
    before = path.read_bytes()

    def chunks():
        yield memoryview(b"half")
        raise Stop

    with pytest.raises(Stop):
        atomic.write(path, chunks())
    assert path.read_bytes() == before and [x.name for x in tmp_path.iterdir()] == ["c"]


@fails_with(
    "checkpoint/atomic.py",
    "            _write_all(descriptor, head())\n        os.fsync(descriptor)\n",
    "            _write_all(descriptor, head())\n",
)
def test_nodedb_78_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """A file that is renamed before it was synced may hold zeros after a power cut
    (NodeDB-Lab/nodedb#78)."""
    called = []
    for name in ("write", "fsync", "replace"):
        real = getattr(atomic.os, name)
        monkeypatch.setattr(
            atomic.os, name, lambda *x, f=real, n=name: (called.append(n), f(*x))[1]
        )
    atomic.write(tmp_path / "c", [memoryview(b"bytes")])
    assert called == ["write", "fsync", "replace", "fsync"]


def written(path, **arrays):
    """The header of a valid file of these arrays, and the bytes behind it."""
    container.write(path, arrays, {"k": "v"})
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def rewritten(path, header, rest):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


@fails_with(
    CONTAINER, '    b"\\x80": "a pickle, which is never loaded: it could run any program",\n', ""
)
def test_cve_2025_32434_a_pickle_is_never_loaded(tmp_path):
    """Loading with weights_only ran code all the same (CVE-2025-32434), and without it any file may
    (Dao-AILab/flash-attention#2585). No file is unpickled here."""
    ran = tmp_path / "ran"

    class Bad:
        def __reduce__(self):
            return open, (str(ran), "w")

    path = tmp_path / "c"
    path.write_bytes(pickle.dumps(Bad()))
    with pytest.raises(CheckpointError, match="pickle, which is never loaded"):
        st.checkpoint.read(path)
    assert not ran.exists()


@fails_with(CONTAINER, "        if begin != at:\n", "        if begin > at:\n")
def test_lattice_752_two_arrays_over_one_range(tmp_path):
    """Two arrays that name one range of bytes were both read from it, without an error
    (ohdearquant/lattice#752)."""
    path = tmp_path / "c"
    header, rest = written(path, a=np.ones(4), b=np.ones(4))
    header["b"]["data_offsets"] = header["a"]["data_offsets"]
    rewritten(path, header, rest[:32])
    with pytest.raises(CheckpointError, match="overlaps another"):
        container.read(path)


@fails_with(
    CONTAINER,
    "        if math.prod(shape) * types[code].itemsize != end - begin:\n",
    "        if math.prod(shape) * types[code].itemsize % 2**64 != end - begin:\n",
)
def test_stable_diffusion_1876_the_size_of_a_shape_does_not_wrap(tmp_path):
    """2³² · 2³² elements are 0 in 64 bits, and passed as an empty array
    (leejet/stable-diffusion.cpp#1876)."""
    path = tmp_path / "c"
    header, rest = written(path, a=np.ones((2, 0)), b=np.ones(4))
    header["a"]["shape"] = [2**32, 2**32]
    rewritten(path, header, rest)
    with pytest.raises(CheckpointError, match="does not take 0 bytes"):
        container.read(path)


@fails_with(CONTAINER, "        if digest(x) != digests[name]:\n", "        if False:\n")
def test_lightning_688_a_flipped_bit_is_noticed(tmp_path):
    """A file that a kill had cut short was found out by an `unexpected EOF` on loading
    (Lightning-AI/pytorch-lightning#688). Here any bit and any length is."""
    path = tmp_path / "c"
    container.write(path, {"weight": np.arange(6.0)}, {"k": "v"})
    data = path.read_bytes()
    for place in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            container.read(path)
    for n in range(0, len(data), 31):
        path.write_bytes(data[:n])
        with pytest.raises(CheckpointError):
            container.read(path)
