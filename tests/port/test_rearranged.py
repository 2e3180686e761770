"""What only renames places, and what is left to the host behind the last layer, is ported as it is written."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qatlib import ai8x
from qatlib.export import engines
from qatlib.integer import quantize_model
from qatlib.integer.source import answer_rows, sample_codes


class Net(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def keywords(n, x):
    x = F.relu(n.a(x))
    x = F.relu(n.b(x.view(x.shape[0], x.shape[1], 4, -1)))
    return n.c(x.view(x.size(0), -1))


def boxes(n, x):
    y = F.relu(n.a(x))
    heads = (n.b(y), n.c(F.max_pool2d(y, 2)))
    return torch.cat([h.permute(0, 2, 3, 1).contiguous().view(len(x), -1, 4) for h in heads], 1), heads[0].transpose(1, 2)


def autoencoder(n, x):
    x = F.relu(n.a(x))
    return n.c(F.relu(n.b(x.view(x.shape[0], x.shape[1])))).view(-1, 4, 3)


# input shape, forward, layers, shapes of the outputs
CASES = {
    "keywords": ((6, 16), keywords, {"a": nn.Conv1d(6, 5, 5, dilation=2, padding=2), "b": nn.Conv2d(5, 4, 3, padding=1),
                                     "c": nn.Linear(48, 3)}, [(3,)]),
    "autoencoder": ((4, 3), autoencoder, {"a": nn.Conv1d(4, 5, 3), "b": nn.Linear(5, 6), "c": nn.Linear(6, 12)}, [(4, 3)]),
    "boxes": ((3, 8, 6), boxes, {"a": nn.Conv2d(3, 5, 3, padding=1), "b": nn.Conv2d(5, 8, 3, padding=1), "c": nn.Conv2d(5, 4, 1)},
              [(108, 4), (8, 8, 6)]),
    "rows joined": ((3, 4, 6), lambda n, x: torch.cat([n.a(x), n.b(x)], 2), {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1)},
                    [(4, 8, 6)]),
    "relu behind": ((3, 4, 6), lambda n, x: n.b(F.relu(n.a(x).flatten(2))), {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv1d(4, 2, 3)},
                    [(2, 22)]),
    "there and back": ((3, 4, 6), lambda n, x: n.b(n.a(x).flatten(1).view(len(x), 4, 4, 6)), {"a": nn.Conv2d(3, 4, 1),
                       "b": nn.Conv2d(4, 2, 3)}, [(2, 2, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rearranging_is_ported_as_it_is_written(name):
    shape, forward, layers, shapes = CASES[name]
    plain = Net(forward, **layers).eval()
    net = ai8x.from_torch(plain, shape, verbose=False)
    x = torch.randint(-128, 128, (5, *shape), generator=torch.Generator().manual_seed(1)) / 128
    wanted, found = (torch.utils._pytree.tree_leaves(model(x)) for model in (plain, net))
    assert [tuple(y.shape[1:]) for y in found] == shapes
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    ai8x.start_qat(net, [x], {"weight_bits": 8}, progress=False)
    compact = quantize_model(net).compact
    pictures = sample_codes(compact, None, 4)
    assert np.array_equal(engines.torch_runner(net, compact)(pictures), answer_rows(compact, pictures))


@pytest.mark.parametrize(("forward", "sentence"), [
    (lambda n, x: torch.cat([n.a(x), n.a(x)]), "cat"), (lambda n, x: n.a(x).flatten(), "reshape"),
    (lambda n, x: n.a(x).transpose(0, 1), "transpose"), (lambda n, x: n.a(x.mT), "getattr|mT|transpose"),
])  # fmt: skip
def test_what_mixes_the_pictures_of_a_batch_is_refused(forward, sentence):
    with pytest.raises(ValueError, match=sentence):
        ai8x.from_torch(Net(forward, a=nn.Conv2d(3, 4, 1)), (3, 4, 4), verbose=False)
