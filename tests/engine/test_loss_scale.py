"""A loss times a constant: trained, measured and bounded as what it is."""

from dataclasses import replace

import pytest
import torch

from lrsearch import TrainingTask
from lrsearch.engine.bound import rate_bound
from lrsearch.engine.lipschitz import first_estimate
from lrsearch.errors import LrsearchError
from lrsearch.tasks.builtin import build_mlp
from lrsearch.tasks.datasets import load_dataset
from lrsearch.training.loop import build_model, evaluate, loss_function, make_optimizer, train

SCALE = 64.0  # a power of two, so that scaling rounds nothing


@pytest.fixture(scope="module", params=["wine", "diabetes"])
def plain(request):
    values = request.param == "diabetes"
    data = load_dataset(request.param, 0)
    return TrainingTask(
        name=request.param,
        data=lambda seed: data,
        model=lambda data: build_mlp(data, hidden=(8,)),
        loss="mse" if values else "cross_entropy",
        metric="mse" if values else "accuracy",
        epochs=3,
        batch_size=16,
    )


def trained(task, lr):
    data = task.data(0)
    model = build_model(task, data, 0)
    optimizer = make_optimizer(task.optimizer, list(model.parameters()), lr)
    return train(task, data, model=model, optimizer=optimizer, seed=0), list(model.parameters())


def test_descent_on_a_scaled_loss_at_the_rate_over_the_scale_is_the_same(plain):
    scaled = replace(plain, loss_scale=SCALE)
    usual, weights = trained(plain, 2.0**-4)
    other, others = trained(scaled, 2.0**-4 / SCALE)
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))
    for name in ("train", "validation", "test"):
        before, after = getattr(usual, name), getattr(other, name)
        assert after.loss == SCALE * before.loss
        assert after.metric == before.metric  # a metric has no scale


def test_a_scaled_loss_trains_by_its_own_gradient(plain):
    usual, _ = trained(plain, 2.0**-10)
    other, _ = trained(replace(plain, loss_scale=SCALE), 2.0**-10)
    assert other.train.loss / SCALE < usual.train.loss


def test_measures_are_of_the_scaled_loss(plain):
    data = plain.data(0)
    model = build_model(plain, data, 0)
    usual = evaluate(plain, model, data.test)
    scaled = evaluate(replace(plain, loss_scale=SCALE), model, data.test)
    assert scaled.loss == SCALE * usual.loss
    assert scaled.metric == usual.metric


@pytest.mark.parametrize("mode", ["paper", "robust"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_the_bound_of_descent_is_divided_by_the_scale(plain, mode, optimizer):
    task = replace(plain, optimizer=optimizer)
    data = task.data(0)
    usual = rate_bound(task, data, mode)
    scaled = rate_bound(replace(task, loss_scale=SCALE), data, mode)
    assert scaled.lr_max == pytest.approx(usual.lr_max / SCALE, rel=1e-12)


def test_the_robust_bound_of_adam_does_not_ask_for_the_losss_scale(plain):
    task = replace(plain, optimizer="adam")
    data = task.data(0)
    usual = rate_bound(task, data, "robust").lr_max
    assert rate_bound(replace(task, loss_scale=SCALE), data, "robust").lr_max == usual


def test_the_lipschitz_rate_of_descent_is_divided_by_the_scale(plain):
    data = plain.data(0)
    for mode in ("paper", "robust"):
        usual = first_estimate(plain, data, mode, 0)
        scaled = first_estimate(replace(plain, loss_scale=SCALE), data, mode, 0)
        assert scaled.lr == pytest.approx(usual.lr / SCALE, rel=1e-6)


def test_a_scale_is_positive_and_finite(plain):
    for scale in (0.0, -1.0, float("inf")):
        with pytest.raises(LrsearchError, match="loss_scale"):
            replace(plain, loss_scale=scale)


def test_a_scale_of_one_is_torchs_own_loss():
    assert loss_function("mse") is torch.nn.functional.mse_loss
