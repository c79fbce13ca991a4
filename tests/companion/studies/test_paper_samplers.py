"""The paper's samplers: both last steps of one trajectory, the choice of weights, what is kept."""

import numpy as np
import pytest
import torch

from companion.experiments import study, tuning
from companion.experiments.generate import Arm, SampleConfig
from companion.experiments.spaces import Features
from companion.plots.style import save
from companion.studies import paper_samplers as paper
from companion.studies.families import Family
from companion.studies.tell import paper_samplers as tell
from nag import checkpoint
from nag.samplers.one_step import euler_maruyama
from nag.samplers.registry import last
from nag.samplers.time_grids import sde_times
from nag.support.files import read_json, write_json
from nag.support.rng import ImageNoise

CONFIG = SampleConfig(
    sampler="sde",
    steps=13,
    states_every=3,  # of 12 and so the last before the end, as 249 of 250
    n_images=40,
    first_seed=100,
    trajectories=20,
    precision="fp32",
    compile=False,
)
CHOSEN = {
    "none": Arm(),
    "nag": Arm(w_nag=0.5),
    "cfg": Arm(cfg=1.5),
    "cfg-nag": Arm(w_nag=0.25, cfg=1.25),
}


def test_both_ends_are_those_of_either_last_step_at_the_cost_of_one():
    calls = []

    def field(x, t):
        calls.append(t)
        return 0.3 * x - t

    times, seeds = sde_times(9), range(3)

    def ran(solver, **more):
        noise = ImageNoise(seeds)
        return list(solver(field, noise((1, 4, 4)), times, noise, **more))

    both = ran(paper.euler_maruyama_with_both_ends)
    assert calls == times[:-1].tolist()
    end, t = both[-1]
    assert end.shape == (3, 2, 4, 4) and t == 0
    for k, kind in enumerate(paper.LAST_STEPS):
        alone = ran(euler_maruyama, last_step=kind)
        torch.testing.assert_close(end[:, k : k + 1], alone[-1][0])
        for (x, s), (y, u) in zip(both[:-1], alone[:-1], strict=True):
            assert s == u
            torch.testing.assert_close(x, y)
    assert last(iter(both)) is end


def test_corner_noise_is_the_distance_from_black_of_the_corners_alone():
    images = np.full((5, 1, 28, 28), 200, np.uint8)
    for rows in (slice(3), slice(-3, None)):
        for columns in (slice(3), slice(-3, None)):
            images[..., rows, columns] = 0
    assert paper.corner_noise(images) == 0
    images[..., 0, 0] = 51  # 0.4 above black, in one of the 36 pixels
    assert paper.corner_noise(images) == pytest.approx(0.4 / 6)


class Bowl:
    """A distance that CFG alone makes least, so that NAG on top of it only harms."""

    def row(self, arm):
        return {
            "w_nag": arm.w_nag,
            "cfg": arm.cfg,
            "fd_inf": abs(arm.cfg - 2) + abs(arm.w_nag - (0.5 if arm.cfg == 1 else 0)),
        }


def test_the_search_for_both_begins_with_the_best_of_each():
    table = paper.tuned(Bowl(), [0.25, 0.5], [1.5, 2.0], 4)
    best = tuning.best(table)
    assert best["nag"] == Arm(w_nag=0.5) and best["cfg"] == Arm(cfg=2.0)
    tried = table[table.arm == "cfg-nag"][["w_nag", "cfg"]].to_numpy().tolist()
    assert tried[:3] == [[0.5, 2.0], [0.25, 2.0], [0.5, 1.5]] and len(tried) == 4
    assert best["cfg-nag"].cfg == 2.0 and best["cfg-nag"].w_nag < 0.25
    assert table.arm.value_counts().to_dict() == {"none": 1, "nag": 4, "cfg": 4, "cfg-nag": 4}


@pytest.fixture
def sampling(tiny, tmp_path, monkeypatch, on_cpu):
    """Small networks of both families by name; five numbers of an image stand for its features."""

    def features(images):
        x = torch.as_tensor(images).float().flatten(1) / 255
        return Features(x[:, 100:103], x[:, 300:302])

    def control(row, path, reader, images=800):
        return np.random.default_rng(0).normal(row["times"], 0.01, (80, len(row["times"])))

    monkeypatch.setattr(study.spaces, "features_of", features)
    monkeypatch.setattr(study, "control", control)

    def made(name):
        net = tiny(input_size=28, patch=14, path={"sit": "linear", "dit": "ddpm"}[name])
        files = [tmp_path / f"{name}.safetensors", tmp_path / "estimator.safetensors"]
        checkpoint.save(files[0], net)
        files[1].write_text("estimator")
        family = Family(name, net, lambda x: x.flatten(1).std(1), files)
        return paper.Sampling(family, tmp_path / "arms")

    return made


REAL = Features(*(torch.rand(300, k, generator=torch.Generator().manual_seed(k)) for k in (3, 2)))


def measured(sampling, name, pair_images=60):
    model = sampling(name)
    choose = CONFIG.model_copy(update={"first_seed": 1000, "trajectories": 0, "steps": 8})
    table = paper.tuned(paper.Tuning(model, choose, REAL), [0.5], [1.5], 2)
    rows = paper.sampled(model, CHOSEN, CONFIG, pair_images)
    levels = paper.levels_at(rows, model.family)
    study.save_images(model.folder / "first.npz", rows, levels)
    numbers = paper.measured(model, rows, CHOSEN, CONFIG, REAL, 50)
    return model, rows, numbers | {"tuning": paper.budget(table, choose, 2)}


@pytest.mark.slow
def test_sits_arms_have_both_last_steps_and_the_pair_more_images(sampling, tmp_path):
    model, rows, numbers = measured(sampling, "sit")
    assert numbers["n"] == 40 == numbers["arms"]["none"]["protocol"]["n"]
    few = study.quality({"none": study.first(rows["none"], 40)}, REAL)["none"]
    assert numbers["arms"]["none"]["fd"]["value"] == few["fd"]["value"]  # not of all 60
    assert numbers["arms"]["none"]["fd"]["seeds"] == [100, 139]
    assert len(rows["none"]["times"]) == 6 == 1 + len(numbers["curves"]["times"])
    assert numbers["seeds"] == [100, 159] and list(numbers["ends"]) == ["mean"]
    for arm, found in numbers["arms"].items():
        assert {"fd", "fd_inf", "fd_inf_second", "kid", "precision", "recall"} < set(found)
        assert found["shift_late"]["n"] == 20 and found["shift_late"]["seeds"] == [100, 119]
        assert found["nfe"] == 13 * {"none": 1, "nag": 2, "cfg": 2, "cfg+nag": 3}[arm]
        assert found["protocol"]["last_step"] == "Tweedie's"
    ratio = numbers["ratios"]["nag over none"]
    assert ratio["n"] == 60 and numbers["ratios"]["nag over cfg"]["n"] == 40
    assert "second" in ratio and ratio != numbers["ends"]["mean"]["ratios"]["nag over none"]
    other = study.at_end(rows["none"], 1)
    assert (other["features"] != rows["none"]["features"]).any()
    assert numbers["shift"]["nag"]["late_ratio"]["low"] > 0
    assert numbers["tuning"]["n"] == 40 and numbers["tuning"]["tried"]["none"] == 1
    assert all("fd_inf_mean" in row for row in numbers["tuning"]["rows"])
    lines = paper.table(numbers)
    assert len(lines) == 8 and set(lines.last_step) == {"tweedie", "mean"}
    again = paper.sampled(model, CHOSEN, CONFIG, 60)
    assert all((again[a]["features"] == rows[a]["features"]).all() for a in rows)  # kept
    write_json(tmp_path / "numbers.json", numbers)
    told(read_json(tmp_path / "numbers.json"), tmp_path)
    with np.load(tmp_path / "arms" / "first.npz") as kept:
        assert kept["levels cfg-nag"].shape == (20, 3) and len(kept["times"]) == 3
        at = [rows["nag"]["times"].tolist().index(t) for t in kept["times"]]
        assert kept["levels nag"] == pytest.approx(rows["nag"]["levels"][:, at], rel=1e-6)


@pytest.mark.slow
def test_ddpm_has_one_end(sampling, tmp_path):
    _, _, numbers = measured(sampling, "dit", pair_images=10)
    assert numbers["sampler"] == "ddpm" and numbers["ends"] == {}
    assert numbers["n"] == 40 and numbers["last_step"] == ""
    assert "last_step" not in numbers["arms"]["none"]["protocol"]
    write_json(tmp_path / "numbers.json", numbers)
    told(read_json(tmp_path / "numbers.json"), tmp_path)


def told(numbers, folder):
    """Tables, figure and answer of numbers as JSON has them."""
    assert len(tell.table(numbers)) == 4
    assert len(tell.table_of_ratios(numbers).columns) == 2 + len(numbers["ends"])
    save(tell.figure(numbers), "figure", folder)
    save(tell.posteriors(folder / "arms" / "first.npz", numbers), "posteriors", folder)
    answer = tell.answers(numbers, "figures/x.png")["Q2"]
    assert "The paper: 0.2" in tell.in_a_sentence(numbers)
    for arm in tell.ARMS:
        assert tell.show(numbers["ratios"][f"{arm} over none"]) in answer["brief"]
    own = tell.show(numbers["shift_own"]["nag"]["shift_late"], "+.4f")
    assert f"{own} (NAG)." in answer["sentence"]
    assert ("SiT's last step leaves noise" in answer["sentence"]) == bool(numbers["ends"])
    assert answer["sentence"].startswith(answer["brief"]) and answer["key"] in numbers
