"""Networks that nobody wrote down, planned and then executed by our model of the chip from the exported files alone."""

from collections import Counter

import numpy as np
import pytest
import yaml
from export_networks import Builder, codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import checkpoint

from qatlib.chip import Simulator
from qatlib.chip.meter import fit
from qatlib.chip.synthesis import network_yaml
from qatlib.integer.engine import Integer

CHANNELS = (1, 4, 8, 12, 16, 20, 32, 36, 40, 56, 64, 68, 72, 100, 128, 192)


class Draw:
    """One random network after another; `choose` takes one of several things, so that both hypothesis and NumPy can."""

    def __init__(self, choose, device):
        self.choose, self.device = choose, device
        self.dims = choose((1, 2, 2, 2))
        sizes = (choose((12, 17, 33)),) if self.dims == 1 else (choose((6, 8, 12)), choose((6, 8, 9)))
        self.b, self.count = Builder((choose(CHANNELS[:12]), *sizes), choose(range(50))), 0
        self.tip = "input"

    def add(self, kind, *inputs, **more):
        self.count += 1
        self.tip = f"op{self.count}"
        self.b.op(self.tip, kind, *inputs, **more)
        return self.tip

    def pool(self):
        size, stride = self.choose((2, 3)), self.choose((1, 2))
        form = {"type": self.choose(("max", "avg")), "dilation": [1] * self.dims, "round": False}
        fits = all(n >= 2 * size + 2 for n in self.b.shapes[self.tip][1:])
        return form | {"size": [size] * self.dims, "stride": [stride] * self.dims} if fits else None

    def layer(self, source, out=None, keeps=False, wide=False):
        """A convolution of `source`, of the same size with `keeps`."""
        choose, kind = self.choose, "conv1d" if self.dims == 1 else "conv2d"
        self.tip, size = source, min(self.b.shapes[source][1:])
        kernel = choose((1, 3, 3) if self.dims == 2 else (1, 2, 3, 5, 7) if size > 8 else (1, 3))
        more = {"out": out or choose(CHANNELS), "bits": choose((8, 8, 4, 2)), "bias": choose((True, False)), "wide": wide}
        more |= {"kernel": kernel, "padding": kernel // 2 if size < 10 else choose(range(min(kernel, 3)))}
        more["activation"] = None if wide else choose((None, "relu", "relu", "abs"))
        if keeps:
            more |= {"kernel": choose((1, 3))}
            more["padding"] = more["kernel"] // 2
        elif self.dims == 2 and choose(range(6)) == 0 and size <= 8:
            kind, more = "conv_transpose2d", more | {"kernel": 3, "padding": choose((0, 1, 2))}
        elif self.dims == 2 and self.device == 87 and choose(range(4)) == 0:
            more |= {"out": self.b.shapes[source][0], "groups": self.b.shapes[source][0]}
        elif self.dims == 1 and size >= 16 and choose(range(3)) == 0:
            more |= {"kernel": choose((2, 3)), "dilation": choose((2, 3, 4, 5)), "padding": 0}
        elif choose(range(3)) == 0 and size >= 5:
            more["pool"] = self.pool() if more["kernel"] <= 3 or more["padding"] else None
        return self.add(kind, source, **more)

    def block(self):
        """One more piece of network behind the tip."""
        choose, x = self.choose, self.tip
        what = choose(("layer",) * 5 + ("pool", "skip", "skip", "branches", "cat", "cat", "cat with skip"))
        if what == "layer":
            self.layer(x)
        elif what == "pool":
            if how := self.pool():
                self.add("pool", x, pool=how)
        elif what == "skip":
            y = self.layer(x, self.b.shapes[x][0], keeps=True)
            self.add(choose(("add", "sub")), *choose(((x, y), (y, x))))
        else:
            parts = choose((2, 2, 3))
            out = choose((4, 8, 16, 20, 24, 36, 56, 64)) if what != "cat with skip" else self.b.shapes[x][0]
            deep = what != "branches" and choose((False, True))  # the last part reads the first one
            made = [x] if what == "cat with skip" else []
            made += [self.layer(x, out, keeps=True) for _ in range(parts - deep - len(made))]
            made += [self.layer(made[0], out, keeps=True)] if deep else []
            if what == "branches":
                self.add(choose(("add", "sub")), *made)
            else:
                y = self.add("concat", *made)
                if choose(range(3)) == 0:
                    self.add("add", y, self.layer(y, self.b.shapes[y][0], keeps=True))

    def end(self):
        how, shape = self.choose(("conv", "conv", "linear", "linear", "as it is", "two", "flat branch")), self.b.shapes[self.tip]
        if how == "conv":
            self.layer(self.tip, self.choose((3, 10, 65)), wide=self.choose((True, False)))
        elif how in ("linear", "flat branch"):
            x = self.tip
            if how == "flat branch":
                self.layer(x, 4, keeps=True)
                self.add("flatten", x)
                self.add("linear", out=5, wide=True)
                return ("op" + str(self.count - 2), self.tip)
            self.add("flatten", x)
            self.add("linear", out=self.choose((1, 5, 17)), bits=self.choose((8, 4)), wide=self.choose((True, False)))
        elif how == "two":
            x = self.tip
            return self.layer(x, 5, keeps=True, wide=True), self.layer(x, 3, keeps=True)
        return (self.tip,) if self.count else (self.layer(self.tip, shape[0]),)

    def network(self):
        for _ in range(self.choose(range(1, 6))):
            self.block()
        model = self.b.build(*self.end())
        model.graph["device"] = self.device
        return model


def judged(model):
    """Whether the meter lets it through; then our model of the chip must build it, and compute the same integers."""
    device = model.graph["device"]
    report = fit(model, device=device)
    assert report.fits == (not report.violations) and all(": " in sentence for sentence in report.violations)
    if report.fits:
        network = yaml.safe_load(network_yaml(report, "net"))
        chip = Simulator(network, checkpoint(model), model.graph["input_shape"], device)
        picture = codes(model, 3)[2]
        names = [step.layer.name for step in report.sequence]
        found = {names[number]: value for number, value in chip.run(picture).items()}
        wanted = Integer(model)(picture, keep=[output["op"] for output in model.graph["outputs"]])
        assert {*found} == {*wanted}
        for name, value in wanted.items():
            assert np.array_equal(found[name].ravel(), value.ravel()), name
    return report


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from((85, 85, 87)))
def test_what_fits_is_built_and_computes_the_same_integers(data, device):
    judged(Draw(lambda choices: data.draw(st.sampled_from(list(choices))), device).network())


@pytest.mark.parametrize("device", [85, 87])
def test_most_random_networks_fit_and_the_rest_are_refused_for_known_reasons(device):
    rng, refused, fits = np.random.default_rng(device), Counter(), 0
    for _ in range(120):
        report = judged(Draw(lambda choices: list(choices)[rng.integers(len(choices))], device).network())
        fits += report.fits
        refused.update(sentence.split(": ")[1] for sentence in report.violations)
    assert fits >= 60, (fits, refused)
