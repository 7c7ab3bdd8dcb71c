"""Sharpness against dense Hessians, and the bounds of torch's optimizers against their descent."""

import copy
import doctest
import random
from functools import partial
from importlib import import_module
from math import inf

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from lrsearch import Sharpness, SharpnessBound, sharpness, sharpness_bound
from lrsearch.bounds import averaged_limit, heavy_ball_limit, largest_covariance_eigenvalue
from lrsearch.errors import LrsearchError

SGD, RMSprop, Adam, AdamW = (getattr(torch.optim, n) for n in ("SGD", "RMSprop", "Adam", "AdamW"))
mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


def net(activation=nn.Tanh, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)).to(dtype)


def data(loss=cross_entropy, rows=40, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 4, generator=generator, dtype=dtype)
    if loss is mse:
        return inputs, torch.randn(rows, 3, generator=generator, dtype=dtype)
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


def uneven(inputs, targets):
    return [(inputs[:3], targets[:3]), (inputs[3:20], targets[3:20]), (inputs[20:], targets[20:])]


def dense_hessian(model, loss, inputs, targets):
    """All second derivatives with respect to the trainable parameters, in the model's order."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def of(flat):
        pieces = flat.split([p.numel() for p in named.values()])
        shaped = {n: v.reshape(p.shape) for (n, p), v in zip(named.items(), pieces, strict=True)}
        return loss(functional_call(model, shaped, (inputs,)), targets)

    flat = torch.cat([p.reshape(-1) for p in named.values()])
    return torch.autograd.functional.hessian(of, flat).numpy()


def top(matrix):
    return np.linalg.eigvalsh(matrix)[-1]


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("loss", [mse, cross_entropy])
def test_it_equals_the_dense_hessians_largest_eigenvalue(loss, activation, seed):
    model, (inputs, targets) = net(activation, seed), data(loss, seed=seed)
    expected = top(dense_hessian(model, loss, inputs, targets))
    for batches in ([(inputs, targets)], uneven(inputs, targets)):
        found = sharpness(model, loss, batches, tolerance=1e-6)
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert found.residual <= 1e-6 * expected
        assert found.samples == 40
        assert 1 < found.products < 60


def test_the_default_tolerance_gives_the_rate_to_a_thousandth():
    model, (inputs, targets) = net(), data()
    expected = top(dense_hessian(model, cross_entropy, inputs, targets))
    found = sharpness(model, cross_entropy, [(inputs, targets)])
    assert found.value == pytest.approx(expected, rel=1e-3)


def test_float32_weights_give_it_to_single_precision():
    inputs, targets = data()
    expected = top(dense_hessian(net(), cross_entropy, inputs, targets))
    batch = (inputs.float(), targets)
    found = sharpness(net(dtype=torch.float32), cross_entropy, [batch], tolerance=1e-12)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.products < 30  # a tolerance below what rounding leaves does not go on for ever


def test_half_precision_weights_stop_where_their_rounding_does():
    inputs, targets = data()
    model = net(dtype=torch.bfloat16)
    expected = top(dense_hessian(net(), cross_entropy, inputs, targets))
    batch = (inputs.bfloat16(), targets)
    found = sharpness(model, cross_entropy, [batch], tolerance=1e-12)
    assert found.value == pytest.approx(expected, rel=0.02)
    assert found.products < 15


def test_a_preconditioner_divides_the_hessian():
    model, (inputs, targets) = net(), data()
    generator = torch.Generator().manual_seed(3)
    D = [torch.rand(p.shape, generator=generator).double() + 0.01 for p in model.parameters()]
    root = flat(D) ** -0.5
    expected = top(root[:, None] * dense_hessian(model, cross_entropy, inputs, targets) * root)
    batches = uneven(inputs, targets)
    found = sharpness(model, cross_entropy, batches, preconditioner=D, tolerance=1e-6)
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_frozen_parameters_are_left_out():
    model, (inputs, targets) = net(), data()
    whole = top(dense_hessian(model, cross_entropy, inputs, targets))
    model[0].requires_grad_(False)
    expected = top(dense_hessian(model, cross_entropy, inputs, targets))
    found = sharpness(model, cross_entropy, [(inputs, targets)], tolerance=1e-6)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert expected < 0.9 * whole


class WithSpare(nn.Module):
    """One layer is called, another is not."""

    def __init__(self, inner):
        super().__init__()
        self.spare, self.inner = nn.Linear(5, 5).double(), inner

    def forward(self, inputs):
        return self.inner(inputs)


def test_unused_parameters_do_not_matter():
    batch = data()
    alone = sharpness(net(), cross_entropy, [batch], tolerance=1e-6)
    beside = sharpness(WithSpare(net()), cross_entropy, [batch], tolerance=1e-6)
    assert beside.value == pytest.approx(alone.value, rel=1e-9)


def test_of_a_linear_model_it_is_the_covariances_eigenvalue():
    inputs, targets = data(mse)
    found = sharpness(nn.Linear(4, 3).double(), mse, [(inputs, targets)], tolerance=1e-8)
    C = largest_covariance_eigenvalue(inputs, standardize=False, bias=True) * 39 / 40
    assert found.value == pytest.approx(2 / 3 * C, rel=1e-6)  # MSELoss: mean over 3 outputs


def test_one_shot_iterators_and_loaders_are_walked_again():
    model, (inputs, targets) = net(), data()
    expected = sharpness(model, cross_entropy, [(inputs, targets)]).value
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=7, shuffle=True)
    for batches in (iter(uneven(inputs, targets)), loader):
        found = sharpness(model, cross_entropy, batches)
        assert found.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_where_nothing_curves_upwards_the_value_says_so_and_no_rate_is_bounded(sign):
    model = nn.Linear(2, 1, bias=False).double()
    batch = (torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))

    def loss(outputs, targets):
        return sign * ((outputs - targets) ** 2).mean() + outputs.mean()

    bound = sharpness_bound(SGD(model.parameters(), lr=0.1), model, loss, [batch])
    assert bound.sharpness == pytest.approx(sign)
    assert bound.lr_max == inf


def test_a_loss_without_any_curvature_has_sharpness_zero():
    model = nn.Linear(2, 1)
    found = sharpness(model, lambda outputs, _: outputs.mean(), [(torch.eye(2), torch.ones(2))])
    assert (found.value, found.residual, found.products) == (0.0, 0.0, 1)


def test_running_out_of_products_shows_in_the_residual():
    model, batch = net(), data()
    found = sharpness(model, cross_entropy, [batch], tolerance=1e-9, max_products=2)
    assert found.products == 2
    assert found.residual > 1e-3 * found.value


def test_a_basis_that_is_too_large_for_memory_restarts(monkeypatch):
    model, (inputs, targets) = net(), data()
    expected = top(dense_hessian(model, cross_entropy, inputs, targets))
    monkeypatch.setattr("lrsearch.training.hessian.BASIS_NUMBERS", 0)  # four vectors are left
    found = sharpness(model, cross_entropy, [(inputs, targets)], tolerance=1e-6, max_products=500)
    assert found.value == pytest.approx(expected, rel=1e-6)


# --- Modes, random layers, kernels ---------------------------------------------------------------


def noisy_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)
    ).double()


def test_batch_norm_uses_the_batchs_statistics_in_training_mode():
    model, (inputs, targets) = noisy_net(), data()
    model[3].p = 0.0
    model[1].running_var.fill_(4.0)
    values = {}
    for training in (True, False):
        model.train(training)
        reference = copy.deepcopy(model)
        reference[1].track_running_stats = not training
        expected = top(dense_hessian(reference, cross_entropy, inputs, targets))
        found = sharpness(model, cross_entropy, [(inputs, targets)], tolerance=1e-6)
        assert found.value == pytest.approx(expected, rel=1e-6)
        values[training] = expected
    assert values[True] != pytest.approx(values[False], rel=0.1)


def test_random_layers_draw_the_same_masks_in_every_product():
    model, batches = noisy_net(), uneven(*data())
    one, two, other = (
        sharpness(model, cross_entropy, batches, tolerance=1e-8, seed=seed) for seed in (0, 0, 1)
    )
    assert one == two
    assert one.residual <= 1e-8 * one.value  # an operator that changed could not be solved for
    assert one.value != pytest.approx(other.value, rel=1e-3)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, inputs):
        return self.inner(inputs, inputs, inputs, need_weights=False)[0][:, 0, :3]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.LSTM(4, 3, batch_first=True)

    def forward(self, inputs):
        return self.inner(inputs)[0][:, -1]


@pytest.mark.parametrize("kind", [Attention, Recurrent])
def test_fused_layers_are_differentiated_twice(kind):
    torch.manual_seed(0)
    model = kind().double()
    inputs, targets = torch.randn(12, 5, 4, dtype=torch.float64), torch.arange(12) % 3
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = top(dense_hessian(model, cross_entropy, inputs, targets))
    found = sharpness(model, cross_entropy, [(inputs, targets)], tolerance=1e-6)
    assert found.value == pytest.approx(expected, rel=1e-6)


# --- Nothing changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_of_the_model_the_optimizer_or_the_generators_changes(training, surroundings):
    model, (inputs, targets) = noisy_net(), data()
    model.train(training)
    model[4].eval()
    optimizer = Adam(model.parameters(), lr=0.01)
    cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    modes = [module.training for module in model.modules()]
    weights, states = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002

    loader = DataLoader(TensorDataset(inputs, targets), batch_size=9, shuffle=True)
    with surroundings():
        modes_before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        sharpness_bound(optimizer, model, cross_entropy, loader)
        assert modes_before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())

    assert modes == [module.training for module in model.modules()]
    assert objects == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    after = optimizer.state_dict()
    assert states["param_groups"] == after["param_groups"]
    for index, state in states["state"].items():
        assert all(torch.equal(t, after["state"][index][name]) for name, t in state.items())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert (generators[2] == np.random.get_state()[1]).all()  # noqa: NPY002


# --- The bound of an optimizer -------------------------------------------------------------------


def second_moment(model, seed=5):
    """Any positive numbers, shaped as the parameters, far from the squared gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (0.05 + torch.rand(p.shape, generator=generator).double()) ** 2 for p in model.parameters()
    ]


def with_state(optimizer, model):
    """As after many steps: the second moment is there, and bias corrections matter."""
    for p, v in zip(model.parameters(), second_moment(model), strict=True):
        if isinstance(optimizer, RMSprop):
            optimizer.state[p] = {"square_avg": v, "grad_avg": 0.5 * v.sqrt()}
        else:
            step, zeros = torch.tensor(7.0), torch.zeros_like(p)
            state = {"step": step, "exp_avg": zeros, "exp_avg_sq": v, "max_exp_avg_sq": 3 * v}
            optimizer.state[p] = state
    return optimizer


CASES = {
    "sgd": (SGD, {}, lambda g, v, w: 1 + 0 * g, 0.0, 2.0),
    "momentum": (SGD, {"momentum": 0.9}, lambda g, v, w: 1 + 0 * g, 0.0, 3.8),
    "dampening": (SGD, {"momentum": 0.5, "dampening": 0.2}, lambda g, v, w: 1 + 0 * g, 0.0, 3.75),
    "nesterov": (SGD, {"momentum": 0.5, "nesterov": True}, lambda g, v, w: 1 + 0 * g, 0.0, 1.5),
    "sgd, decay": (SGD, {"weight_decay": 0.2}, lambda g, v, w: 1 + 0 * g, 0.2, 2.0),
    "rmsprop": (RMSprop, {"alpha": 0.9}, lambda g, v, w: np.sqrt(0.1) * abs(g) + 1e-8, 0.0, 2.0),
    "rmsprop, centered": (
        RMSprop,
        {"alpha": 0.9, "centered": True},
        lambda g, v, w: np.sqrt(0.09) * abs(g) + 1e-8,
        0.0,
        2.0,
    ),
    "adam": (Adam, {}, lambda g, v, w: abs(g) + 1e-8, 0.0, 38.0),
    "adam, decay": (
        Adam,
        {"weight_decay": 0.2, "betas": (0.5, 0.9)},
        lambda g, v, w: abs(g + 0.2 * w) + 1e-8,
        0.2,
        6.0,
    ),
    "rmsprop, later": (
        RMSprop,
        {"momentum": 0.5, "eps": 0.1},
        lambda g, v, w: v**0.5 + 0.1,
        0.0,
        3.0,
    ),
    "rmsprop, centered, later": (
        RMSprop,
        {"centered": True},
        lambda g, v, w: (0.75 * v) ** 0.5 + 1e-8,
        0.0,
        2.0,
    ),
    "adam, later": (
        Adam,
        {"betas": (0.8, 0.99), "eps": 0.01},
        lambda g, v, w: (v / (1 - 0.99**7)) ** 0.5 + 0.01,
        0.0,
        18.0,
    ),
    "adam, amsgrad, later": (
        Adam,
        {"amsgrad": True},
        lambda g, v, w: (3 * v / (1 - 0.999**7)) ** 0.5 + 1e-8,
        0.0,
        38.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_the_bound_rests_on_the_dense_preconditioned_hessian(case, activation):
    kind, options, denominator, decay, factor = CASES[case]
    model, (inputs, targets) = net(activation), data()
    optimizer = kind(model.parameters(), lr=0.1, **options)
    if case.endswith("later"):
        with_state(optimizer, model)
    gradients = torch.autograd.grad(cross_entropy(model(inputs), targets), list(model.parameters()))
    weights = flat(model.parameters())
    D = denominator(flat(gradients), flat(second_moment(model)), weights)
    H = dense_hessian(model, cross_entropy, inputs, targets) + decay * np.eye(len(D))
    expected = top(H / np.sqrt(D[:, None] * D))
    batches = uneven(inputs, targets)
    bound = sharpness_bound(optimizer, model, cross_entropy, batches, tolerance=1e-6)
    assert bound.sharpness == pytest.approx(expected, rel=1e-6)
    assert bound.lr_max == pytest.approx(factor / expected, rel=1e-6)
    assert bound.preconditioned == (kind is not SGD)
    assert bound.samples == 40


FROZEN = 1.0 - 1e-15  # a second moment that does not move
DESCENTS = {
    "sgd": partial(SGD),
    "momentum": partial(SGD, momentum=0.9),
    "dampened": partial(SGD, momentum=0.8, dampening=0.5),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "sgd, decay": partial(SGD, weight_decay=0.3),
    "nesterov, decay": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.3),
    "rmsprop": partial(RMSprop, alpha=FROZEN),
    "rmsprop, momentum": partial(RMSprop, alpha=FROZEN, momentum=0.8, weight_decay=0.1),
    "adam": partial(Adam, betas=(0.9, FROZEN)),
    "adam, decay": partial(Adam, betas=(0.9, FROZEN), weight_decay=0.3),
    "adam, amsgrad": partial(Adam, betas=(0.5, FROZEN), amsgrad=True),
    "adamw": partial(AdamW, betas=(0.9, FROZEN), weight_decay=0.2),
}


def linear_problem(make):
    """A linear model under MSE, in groups of other rates and decays, moments long settled."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.03}]
    optimizer = make(groups, lr=0.01)
    optimizer.param_groups[1]["weight_decay"] *= 3.0
    for p, v in zip(model.parameters(), second_moment(model), strict=True):
        zeros = torch.zeros_like(p)
        late = torch.tensor(1e18, dtype=torch.float64)
        if isinstance(optimizer, RMSprop):
            optimizer.state[p] = {"step": late, "square_avg": v, "momentum_buffer": zeros}
        elif isinstance(optimizer, Adam):
            state = {"step": late, "exp_avg": zeros, "exp_avg_sq": v, "max_exp_avg_sq": v.clone()}
            optimizer.state[p] = state
    return model, optimizer


def last_stride(make, share):
    """How far the weights still move after many steps at a share of the bound, per first stride."""
    (inputs, targets), (model, optimizer) = data(mse), linear_problem(make)
    bound = sharpness_bound(optimizer, model, mse, [(inputs, targets)], tolerance=1e-7)
    for group in optimizer.param_groups:
        group["lr"] *= share * bound.lr_max / 0.01
    first = None
    for _ in range(2000):
        before = flat(model.parameters())
        optimizer.zero_grad()
        mse(model(inputs), targets).backward()
        optimizer.step()
        stride = float(np.abs(flat(model.parameters()) - before).max())
        first = first or stride
        if stride > 1e3 * first:  # farther out the second moment would move after all
            break
    return stride / first


@pytest.mark.parametrize("name", DESCENTS)
def test_descent_settles_just_below_the_bound_and_diverges_just_above(name):
    assert last_stride(DESCENTS[name], 0.99) < 1e-3
    assert last_stride(DESCENTS[name], 1.01) > 1e3


def test_momentum_adds_to_what_descent_alone_can_take():
    model, batch = net(), data()
    bounds = [
        sharpness_bound(SGD(model.parameters(), lr=1.0, **o), model, cross_entropy, [batch])
        for o in ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True})
    ]
    plain, heavy, nesterov = (b.lr_max for b in bounds)
    assert heavy == pytest.approx(1.9 * plain)
    assert nesterov == pytest.approx(1.9 / 2.8 * plain)
    assert [b.form for b in bounds] == ["gradient descent", "heavy ball", "nesterov"]
    assert plain == heavy_ball_limit(bounds[0].sharpness)


def test_adamws_decay_enters_as_the_recursion_has_it():
    model, batch = nn.Linear(4, 3).double(), data(mse)
    options = {"lr": 0.1, "betas": (0.9, 0.999)}
    calls = [AdamW(model.parameters(), weight_decay=w, **options) for w in (0.0, 5.0)]
    calls.append(Adam(model.parameters(), weight_decay=5.0, decoupled_weight_decay=True, **options))
    plain, decayed, flagged = (
        sharpness_bound(c, model, mse, [batch], tolerance=1e-7) for c in calls
    )
    assert decayed.lr_max == pytest.approx(averaged_limit(plain.sharpness, 0.9, 5.0), rel=1e-6)
    assert flagged.lr_max == decayed.lr_max < plain.lr_max


def test_unused_parameters_have_no_decay_either():
    model, batch = WithSpare(net()), data()
    nn.init.constant_(model.spare.weight, 1e-6)  # Adam's denominator would be tiny there
    options = {"lr": 0.1, "weight_decay": 0.1}
    alone, beside = Adam(model.inner.parameters(), **options), Adam(model.parameters(), **options)
    one, two = (
        sharpness_bound(o, model, cross_entropy, [batch], tolerance=1e-8) for o in (alone, beside)
    )
    assert two.sharpness == pytest.approx(one.sharpness, rel=1e-6)


def test_tensor_rates_are_read():
    model, batch = net(), data()
    rates = (0.1, torch.tensor(0.1))
    one, two = (
        sharpness_bound(Adam(model.parameters(), lr=r), model, cross_entropy, [batch]).lr_max
        for r in rates
    )
    assert one == pytest.approx(two, rel=1e-6)


# --- Bad input -----------------------------------------------------------------------------------


def diverged():
    model = net()
    nn.init.constant_(model[0].weight, float("nan"))
    return model


class Shrinking:
    def __init__(self):
        self.left = 5

    def __iter__(self):
        self.left -= 1
        yield from [data()] * self.left


def root_loss(outputs, targets):
    return (outputs - outputs.detach()).abs().pow(1.5).mean()  # no second derivative at 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((print, cross_entropy, [data()]), TypeError, "model must be"),
        ((net(), "mse", [data()]), TypeError, "loss_function must be callable"),
        ((net(), cross_entropy, data()[0]), TypeError, "batches must be an iterable"),
        ((net(), cross_entropy, 3), TypeError, "batches must be an iterable"),
        ((net(), cross_entropy, list(data())), TypeError, "batches must give pairs"),
        ((net(), cross_entropy, [(1, 2)]), TypeError, "batches must give pairs"),
        ((net(), cross_entropy, []), ValueError, "batches must hold samples"),
        ((net(), cross_entropy, Shrinking()), ValueError, "same samples at every pass"),
        ((net().requires_grad_(False), cross_entropy, [data()]), ValueError, "trainable"),
        ((diverged(), cross_entropy, [data()]), ValueError, "loss_function must be finite"),
        ((net(), lambda o, t: o.sum(1), [data()]), ValueError, "scalar tensor"),
        ((net(), lambda o, t: 1.0, [data()]), ValueError, "got float"),
        ((net(), lambda o, t: o.detach().mean(), [data()]), ValueError, "do not detach"),
        ((net(), root_loss, [data()]), ValueError, "finite"),
    ],
)
def test_bad_arguments_raise_one_line_that_names_them(arguments, error, text):
    with pytest.raises(error, match=text) as caught:
        sharpness(*arguments)
    assert isinstance(caught.value, LrsearchError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_products": 0}, "max_products"),
        ({"preconditioner": [torch.ones(2)]}, "preconditioner must have the shapes"),
        ({"preconditioner": [torch.zeros_like(p) for p in net().parameters()]}, "positive"),
    ],
)
def test_bad_options_raise(options, text):
    with pytest.raises(LrsearchError, match=text):
        sharpness(net(), cross_entropy, [data()], **options)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda p: "sgd", TypeError, "optimizer must be a torch.optim.Optimizer"),
        (torch.optim.Adagrad, ValueError, "SGD, RMSprop, Adam or AdamW, got Adagrad"),
        (torch.optim.NAdam, ValueError, "SGD, RMSprop, Adam or AdamW, got NAdam"),
        (partial(SGD, lr=0.1, maximize=True), ValueError, "maximize=True"),
        (partial(SGD, lr=0.0), ValueError, "first parameter group"),
        (partial(SGD, lr=0.1, momentum=1.0), ValueError, "momentum must lie in"),
        (
            lambda p: SGD([{"params": [q], "momentum": 0.1 * i} for i, q in enumerate(p)], lr=0.1),
            ValueError,
            "same momentum in all",
        ),
        (partial(Adam, eps=0.0), ValueError, "give it an eps"),
    ],
)
def test_optimizers_that_cannot_be_bounded_are_refused_in_a_line(make, error, text):
    model, (inputs, targets) = net(nn.ReLU), data()
    with torch.no_grad():
        model[0].bias[0] = -1e3  # a dead unit: its gradients are 0
    with pytest.raises(error, match=text) as caught:
        sharpness_bound(make(model.parameters()), model, cross_entropy, [(inputs, targets)])
    assert isinstance(caught.value, LrsearchError)
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_another_model_is_told():
    optimizer = SGD(net(seed=1).parameters(), lr=0.1)
    with pytest.raises(LrsearchError, match="depend on the trainable parameters"):
        sharpness_bound(optimizer, net(), cross_entropy, [data()])


def test_results_cannot_be_changed():
    model, batch = net(), data()
    found = sharpness(model, cross_entropy, [batch])
    bound = sharpness_bound(SGD(model.parameters(), lr=0.1), model, cross_entropy, [batch])
    assert isinstance(found, Sharpness)
    assert isinstance(bound, SharpnessBound)
    for result in (found, bound):
        with pytest.raises(AttributeError):
            result.residual = 0.0


@pytest.mark.parametrize("module", ["hessian", "rate_bound"])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(import_module(f"lrsearch.training.{module}")).failed == 0
