from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modalign.training import checkpoint
from modalign.training.average import Average
from tests.training.test_loop import make, recipe, records, weights
from tests.training.toy import toy_pairs


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_run_ends_with_the_moving_average_of_its_weights(tmp_path: Path, decay: float) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    plain = make(pairs, tmp_path / "plain", recipe(), torch.float64)
    path = [weights(plain)]
    one_step = plain._one_step

    def recording(batch: object) -> dict:
        told = one_step(batch)
        path.append(weights(plain))
        return told

    plain._one_step = recording
    plain.run()

    averaged = make(pairs, tmp_path / "averaged", recipe(ema=decay), torch.float64)
    averaged.run()
    assert records(tmp_path / "plain") == records(tmp_path / "averaged")  # training itself is the same
    final = weights(averaged)
    for name in final:
        expected = path[0][name].numpy()
        for state in path[1:]:
            expected = decay * expected + (1 - decay) * state[name].numpy()
        np.testing.assert_allclose(final[name].numpy(), expected, rtol=0, atol=1e-13)
    kept = checkpoint.newest(tmp_path / "averaged" / "checkpoints")
    assert kept is not None
    tensors = kept.tensors()
    for name in final:
        assert torch.equal(tensors[f"average.{name}"], final[name])
        assert torch.equal(tensors[f"model.{name}"], path[-1][name])


def test_validation_reads_the_average_and_puts_the_weights_back(tmp_path: Path) -> None:
    pairs, held = toy_pairs(tmp_path / "pictures", n=30).split_off(0.3, 0)
    loop = make(pairs, tmp_path / "run", recipe(ema=0.9), torch.float64, held=held)
    loop.run()
    last = records(tmp_path / "run")[-1]["validation"]["loss"]
    assert loop._validate()["loss"] == pytest.approx(last, rel=1e-12)  # the model now holds the average itself
    again = make(pairs, tmp_path / "run", recipe(ema=0.9), torch.float64, held=held)
    again.restore()
    trained = weights(again)
    assert again._validate()["loss"] == pytest.approx(last, rel=1e-12)
    assert all(torch.equal(value, trained[name]) for name, value in weights(again).items())
    assert not all(torch.equal(value, weights(loop)[name]) for name, value in trained.items())


def test_without_a_decay_nothing_is_copied() -> None:
    live = {"w": torch.ones(3)}
    average = Average(live, None)
    average.update()
    live["w"].zero_()
    average.take_over()
    assert average.tensors == {} and not live["w"].any()
