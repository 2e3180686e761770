"""Memory stays flat: of a training over many epochs, and of a slider that is dragged 500 times.

Each runs in a process of its own, so that nothing else is measured. RSS is taken after a warm-up (imports, the allocator's
pools, Adam's moments, both parts of the training, the slider's kept frames), and again at the end; the medians of several
readings are compared. The bounds are small multiples of what one leak would leave behind, which is computed beside them.
"""

import json
import subprocess
import sys

TRAINING = """
import json, sys, psutil, torch
torch.set_num_threads(1)
from qatcourse.pose import train as recipe
from qatcourse.pose.data import load

reading, measure, out = psutil.Process(), recipe.evaluate, []

def evaluate(model, poses):
    result = measure(model, poses)
    out.append(reading.memory_info().rss)
    return result

recipe.evaluate = evaluate
config = recipe.configure("smoke", n_train=32, n_test=8, epochs=28, start_epoch=3, batch_size=16)
poses = load("figures", "train", 32, progress=False), load("figures", "test", 8, progress=False)
recipe.train(config, sys.argv[1], train_poses=poses[0], test_poses=poses[1], progress=False)
size = sum(t.numel() * t.element_size() for t in recipe.PoseTiny().state_dict().values())
print(json.dumps({"rss": out, "copy": size}))
"""

SLIDER = """
import json, psutil, numpy as np
from qatcourse.viz.svg import Plot
from qatcourse.viz.widgets import KEPT, slider_figure

x, reading, out = np.linspace(-1, 1, 2000), psutil.Process(), []

def draw(step):
    plot = Plot((-1, 1), (-1, 1), "staircase", "x", "y").line(x, np.floor(x * step / 100 + 0.5) / (step / 100))
    return str(plot), f"{step / 100:g} steps a unit."

slider = slider_figure(draw, step=range(100, 800), start={"step": 100})
for move in range(100 + 500):
    slider.sliders["step"].value = 101 + move
    out.append(reading.memory_info().rss)
print(json.dumps({"rss": out[99:], "frame": len(slider.html), "kept": KEPT}))
"""


def measured(script: str, *arguments: str) -> dict:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def test_training_stays_flat_over_many_epochs(tmp_path):
    """28 epochs with a checkpoint each; the last 20 are measured. One copy of the network kept an epoch would add 20 x 1.6 MB."""
    found = measured(TRAINING, str(tmp_path))
    early, late = median(found["rss"][8:13]), median(found["rss"][-5:])
    leak = (len(found["rss"]) - 13) * found["copy"]
    print(f"training: {early / 1e6:.0f} MB after 8 epochs, {late / 1e6:.0f} MB after 28; a leak would add {leak / 1e6:.0f} MB")
    assert len(found["rss"]) == 29 and late - early < leak / 3


def test_a_slider_dragged_500_times_stays_flat():
    """Every position is new, so every move draws; frames that were all kept would add 500 of them."""
    found = measured(SLIDER)
    early, late = median(found["rss"][:11]), median(found["rss"][-11:])
    leak = 490 * found["frame"]
    print(f"slider: {early / 1e6:.0f} MB after 100 moves, {late / 1e6:.0f} MB after 600; all frames kept: {leak / 1e6:.0f} MB more")
    assert found["kept"] < 100 and len(found["rss"]) == 501 and late - early < leak / 3
