"""Programs of others with an optimizer of ours in them, against the same with torch's own.

Each trains as its users do; where it can save and load, it saves half way, and a second one goes on
from that. How far the parameters moved must agree, to roundings.
"""

import copy
import importlib.util
import io
from functools import partial

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # theirs; they are many, and change with every release
]

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

PAIRS = {name: (getattr(stt, name), getattr(torch.optim, name)) for name in ("AdamW", "SGD")}
OPTIONS = {
    "AdamW": {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1},
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order; whatever a client sets is put back."""
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(kind)


def data(rows=32):
    """A regression of four features."""
    source = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 4, generator=source, dtype=torch.float64)
    return x, torch.sin(x).sum(1, keepdim=True)


def network(seed=3):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


def loss_of(model):
    x, y = data()
    return torch.nn.functional.mse_loss(model(x), y)


def numbers(model):
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def moved(model):
    """How far a network is from where it started."""
    return numbers(model) - numbers(network())


def agree(ours, theirs, rtol=1e-9):
    """To roundings, which are carried from step to step; and there was something to agree on."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-3 * rtol)
    assert theirs.abs().max() > 1e-3


def saved(value):
    """What torch.load gives of what torch.save wrote."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def torchvision():
    """Imports it for those who need it. Its operators are compiled for one build of torch; beside
    another its import stops at two that it cannot find: here they are declared, and never run.
    """
    try:
        pytest.importorskip("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        pytest.importorskip("torchvision")


# Optimizers around an optimizer: each makes one of parameters, a class and its options


def sam(parameters, cls, **options):
    return pytest.importorskip("pytorch_optimizer").SAM(parameters, cls, rho=0.2, **options)


def lookahead(parameters, cls, pullback="none", **options):
    wrapper = pytest.importorskip("pytorch_optimizer").Lookahead
    return wrapper(cls(parameters, **options), k=3, pullback_momentum=pullback)


def timm_lookahead(parameters, cls, **options):
    torchvision()
    wrapper = pytest.importorskip("timm.optim").Lookahead
    return wrapper(cls(parameters, **options), k=3)


def schedule_free(parameters, cls, **options):
    wrapper = pytest.importorskip("schedulefree").ScheduleFreeWrapper
    return wrapper(cls(parameters, **options), momentum=0.8, weight_decay_at_y=0.05)


WRAPPERS = {
    "SAM": (sam, "AdamW"),
    "Lookahead": (lookahead, "AdamW"),
    "Lookahead, reset": (partial(lookahead, pullback="reset"), "SGD"),
    "Lookahead, pullback": (partial(lookahead, pullback="pullback"), "SGD"),
    "timm's Lookahead": (timm_lookahead, "AdamW"),
    "ScheduleFreeWrapper": (schedule_free, "SGD"),
}


class Training:
    """A network and a wrapped optimizer with two groups."""

    def __init__(self, make, cls, options):
        self.model = network()
        first, second = self.model[0], self.model[2]
        groups = [
            {"params": list(first.parameters())},
            {"params": list(second.parameters()), "lr": 0.5 * options["lr"]},
        ]
        self.optimizer = make(groups, cls, **options)

    def closure(self):
        self.optimizer.zero_grad()
        loss = loss_of(self.model)
        loss.backward()
        return loss

    def mode(self, name):
        """Of an optimizer that trains with other weights than it is evaluated with."""
        getattr(self.optimizer, name, bool)()

    def run(self, steps):
        self.mode("train")
        for _ in range(steps):
            self.closure()
            self.optimizer.step(self.closure)
        return self

    def checkpoint(self):
        self.mode("eval")
        return saved((self.model.state_dict(), self.optimizer.state_dict()))

    def resume(self, checkpoint):
        model, optimizer = copy.deepcopy(checkpoint)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        return self


@pytest.fixture(params=WRAPPERS)
def wrapper(request):
    """Makes a training with our optimizer inside, and one with torch's."""
    make, name = WRAPPERS[request.param]
    return [partial(Training, make, cls, OPTIONS[name]) for cls in PAIRS[name]]


def test_a_wrapped_optimizer_trains(wrapper):
    ours, theirs = (training().run(10) for training in wrapper)
    agree(moved(ours.model), moved(theirs.model))


@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_a_wrapped_optimizer_goes_on_from_a_checkpoint(wrapper, source):
    """Of either, in both, in the midst of what a Lookahead does at every third step."""
    ours, theirs = wrapper
    first = (ours if source == "ours" else theirs)().run(4)
    whole = moved(theirs().run(10).model)
    for training in wrapper:
        agree(moved(training().resume(first.checkpoint()).run(6).model), whole)
    agree(moved(first.run(6).model), whole)  # and what was saved from goes on as before


# Programs that train


def with_skorch(cls, folder):
    skorch = pytest.importorskip("skorch")
    x, y = (z.numpy() for z in data())
    rates = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.7)

    def net():
        return skorch.NeuralNetRegressor(
            network,
            optimizer=cls,
            lr=0.02,
            optimizer__weight_decay=0.1,
            optimizer__param_groups=[("0.*", {"lr": 0.01})],
            callbacks=[("rates", skorch.callbacks.LRScheduler(policy=rates))],
            batch_size=8,
            max_epochs=3,
            train_split=None,
            verbose=0,
        )

    parts = {"f_params": io.BytesIO(), "f_optimizer": io.BytesIO()}
    net().fit(x, y).save_params(**parts)
    for file in parts.values():
        file.seek(0)
    resumed = net().initialize()
    resumed.load_params(**parts)
    resumed.set_params(optimizer__weight_decay=0.05, optimizer__param_groups__0__lr=0.005)
    return moved(resumed.partial_fit(x, y).module_)


def with_opacus(cls, folder):
    opacus = pytest.importorskip("opacus")
    model = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8)
    private, optimizer, loader = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=cls(model.parameters(), lr=0.02, weight_decay=0.1),
        data_loader=loader,
        noise_multiplier=0.5,
        max_grad_norm=1.0,
        poisson_sampling=False,
        noise_generator=torch.Generator().manual_seed(1),
    )
    for epoch in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(private(x), y).backward()
            optimizer.step()
        if epoch == 0:
            optimizer.load_state_dict(saved(optimizer.state_dict()))
    return moved(model)


def with_fastai(cls, folder):
    torchvision()
    learner = pytest.importorskip("fastai.learner")
    loaders = pytest.importorskip("fastai.data.core").DataLoaders
    optimizer = pytest.importorskip("fastai.optimizer").OptimWrapper
    callbacks = pytest.importorskip("fastai.callback.schedule")
    sets = torch.utils.data.TensorDataset(*(z.float() for z in data()))  # its averages are float
    batches = loaders.from_dsets(sets, sets, bs=8, shuffle=False, device=torch.device("cpu"))

    def learn():
        return learner.Learner(
            batches,
            network().float(),
            loss_func=torch.nn.functional.mse_loss,
            opt_func=partial(optimizer, opt=cls),
            splitter=lambda model: [list(model[0].parameters()), list(model[2].parameters())],
            path=folder,
            cbs=callbacks.ParamScheduler({"lr": callbacks.SchedCos(0.05, 0.01)}),
        )

    first = learn()
    with first.no_bar(), first.no_logging():
        first.fit(2, lr=slice(0.01, 0.05), wd=0.1)
    first.save("half", with_opt=True)
    resumed = learn()
    resumed.create_opt()
    resumed.load("half", with_opt=True)
    with resumed.no_bar(), resumed.no_logging():
        resumed.freeze_to(1)
        resumed.fit(1, lr=0.02)
    return moved(resumed.model)


def with_pyro(cls, folder):
    pyro = pytest.importorskip("pyro")
    inference, optimizers = pytest.importorskip("pyro.infer"), pytest.importorskip("pyro.optim")
    x = data()[0][:, 0]

    def model():
        place = pyro.sample("place", pyro.distributions.Normal(0.0, 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", pyro.distributions.Normal(place, 1.0), obs=x)

    def guide():
        place = pyro.param("place_mean", torch.tensor(1.0))
        spread = pyro.param("spread", torch.tensor(0.5), pyro.distributions.constraints.positive)
        pyro.sample("place", pyro.distributions.Normal(place, spread))

    def svi(rates):
        pyro.set_rng_seed(2)
        loss = inference.TraceMeanField_ELBO()
        return inference.SVI(model, guide, rates, loss)

    def rates():
        options = {"lr": 0.05, "weight_decay": 0.01}
        return optimizers.ExponentialLR({"optimizer": cls, "optim_args": options, "gamma": 0.9})

    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    first = rates()
    run = svi(first)
    for _ in range(5):
        run.step()
        first.step()
    first.save(folder / "rates")
    resumed = rates()
    resumed.load(folder / "rates")
    run = svi(resumed)
    for _ in range(5):
        run.step()
        resumed.step()
    return torch.stack([pyro.param("place_mean") - 1.0, pyro.param("spread") - 0.5]).detach()


def with_gpytorch(cls, folder):
    gpytorch = pytest.importorskip("gpytorch")
    x, y = data()
    torch.set_default_dtype(torch.float64)

    class Regression(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(x, y[:, 0], likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=4))

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Regression(likelihood)
    model.train()
    start = numbers(model)
    optimizer = cls(model.parameters(), lr=0.05)
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    for _ in range(10):
        optimizer.zero_grad()
        (-marginal(model(x), y[:, 0])).backward()
        optimizer.step()
    return numbers(model) - start


def with_ignite(cls, folder):
    ignite = pytest.importorskip("ignite.engine")
    handlers = pytest.importorskip("ignite.handlers")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8)

    def trainer():
        model = network()
        optimizer = cls(model.parameters(), lr=0.02, weight_decay=0.1)
        engine = ignite.create_supervised_trainer(model, optimizer, torch.nn.MSELoss())
        rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        rates = handlers.create_lr_scheduler_with_warmup(rates, 0.001, 4)
        engine.add_event_handler(ignite.Events.ITERATION_STARTED, rates)
        parts = {"model": model, "optimizer": optimizer, "rates": rates, "trainer": engine}
        return engine, parts

    engine, parts = trainer()
    saver = handlers.Checkpoint(parts, handlers.DiskSaver(folder, require_empty=False))
    engine.add_event_handler(ignite.Events.EPOCH_COMPLETED(once=2), saver)
    engine.run(loader, max_epochs=3)
    resumed, copies = trainer()
    handlers.Checkpoint.load_objects(copies, folder / saver.last_checkpoint)
    resumed.run(loader, max_epochs=3)
    agree(moved(copies["model"]), moved(parts["model"]))
    return moved(copies["model"])


PROGRAMS = [with_skorch, with_opacus, with_fastai, with_pyro, with_gpytorch, with_ignite]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_trains_saves_and_goes_on(program, tmp_path):
    found = []
    for name, cls in zip(("ours", "theirs"), PAIRS["AdamW"], strict=True):
        folder = tmp_path / name
        folder.mkdir()
        found.append(program(cls, folder))
    agree(*found, rtol=1e-4 if program is with_fastai else 1e-9)


def test_stable_baselines_trains_past_the_end_of_its_schedule():
    """Its progress is counted in whole rollouts: a linear rate is below 0 in the last of them."""
    baselines = pytest.importorskip("stable_baselines3")
    options = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
    found = []
    for cls in PAIRS["AdamW"]:
        rates = []

        def rate(left, rates=rates):
            rates.append(1e-3 * left)
            return rates[-1]

        policy = {
            "optimizer_class": cls, "optimizer_kwargs": {"weight_decay": 0.1}, "net_arch": [8],
        }  # fmt: skip
        model = baselines.PPO("MlpPolicy", "CartPole-v1", rate, policy_kwargs=policy, **options)
        start = numbers(model.policy)
        model.learn(101)
        assert min(rates) < 0
        file = io.BytesIO()
        model.save(file)
        resumed = baselines.PPO.load(file, env=model.env, device="cpu")
        optimizer = resumed.policy.optimizer
        assert type(optimizer) is cls and len(optimizer.state) > 0
        resumed.learn(65, reset_num_timesteps=False)
        found.append(numbers(resumed.policy) - start)
    agree(*found, rtol=1e-3)  # in float32, and the policy chooses its own data


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
def test_peft_trains_adapters_over_a_base_in_bfloat16(kind):
    """Adapters of LoRA in 16 bits have a master. The base has no gradients, and stays."""
    if importlib.util.find_spec("torchvision"):  # Transformers imports it where there is one
        torchvision()
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 40}
    config = transformers.LlamaConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    lora = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"])
    model = peft.get_peft_model(base, lora, autocast_adapter_dtype=kind == torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {kind} and len(trained) == 12
    master = "split16" if kind == torch.bfloat16 else None
    tokens = torch.randint(0, 40, (4, 12))
    losses = []

    def run(model, optimizer, steps):
        for _ in range(steps):
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))

    optimizer = stt.AdamW(trained.items(), lr=0.01, master=master)
    run(model, optimizer, 20)
    checkpoint = saved((model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, 10)
    assert losses[-1] < losses[20] < losses[0] - 0.3
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in trained), name
        assert (p in optimizer.state) == (name in trained), name
    for p in trained.values():
        assert ("remainder" in optimizer.state[p]) == (master is not None)

    after = {name: p.detach().clone() for name, p in trained.items()}
    model.load_state_dict(checkpoint[0])
    again = stt.AdamW(trained.items(), lr=0.01, master=master)
    again.load_state_dict(checkpoint[1])
    run(model, again, 10)
    assert losses[30:] == losses[20:30]
    assert all(torch.equal(p, after[name]) for name, p in trained.items())
