"""Plain PyTorch networks as users write them, small, and the rewrites that bring each of them to the chip."""

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """The layout of torchvision's ResNet: a stem with a padded max pool, blocks of two layers, an adaptive pool, a classifier."""

    def __init__(self, classes=5):
        super().__init__()
        self.inplanes = 8
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(8, 1)
        self.layer2 = self._make_layer(12, 2, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12, classes)

    def _make_layer(self, planes, blocks, stride=1):
        downsample = None
        if stride != 1 or self.inplanes != planes:
            downsample = nn.Sequential(nn.Conv2d(self.inplanes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes))
        layers = [BasicBlock(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes
        return nn.Sequential(*layers, *(BasicBlock(planes, planes) for _ in range(1, blocks)))

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ConvBNReLU(nn.Sequential):
    def __init__(self, c_in, c_out, kernel, stride=1, groups=1):
        padding = (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    def __init__(self, c_in, c_out, stride, expand):
        super().__init__()
        hidden = c_in * expand
        self.use_res_connect = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            ConvBNReLU(c_in, hidden, 1), ConvBNReLU(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNet(nn.Module):
    """The layout of MobileNetV2: inverted residuals, depthwise layers, ReLU6, x.mean of what is left."""

    def __init__(self, classes=5):
        super().__init__()
        self.features = nn.Sequential(
            ConvBNReLU(3, 8, 3, 2), InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 2), ConvBNReLU(12, 16, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


class VGG(nn.Module):
    """make_layers from a list, a classifier of three linear layers, weights frozen in the first layer."""

    def __init__(self, cfg=(8, "M", 12, "M", 16, 16, "M"), classes=5):
        super().__init__()
        layers, c_in = [], 3
        for v in cfg:
            if v == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [nn.Conv2d(c_in, v, kernel_size=3, padding=1), nn.BatchNorm2d(v), nn.ReLU(inplace=True)]
                c_in = v
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(16 * 4, 24),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(24, 16),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(16, classes),
        )
        self.features[0].weight.requires_grad = False

    def forward(self, x):
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class KWS(nn.Module):
    """Keywords in one dimension, with functions: nothing needs to be rewritten but the softmax."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv1 = nn.Conv1d(8, 12, 3, padding="same")
        self.bn1 = nn.BatchNorm1d(12, affine=False)
        self.conv2 = nn.Conv1d(12, 16, 5, padding=2)
        self.conv3 = nn.Conv1d(16, 12, 3, padding=1, dilation=2, bias=False)
        self.fc = nn.Linear(12 * 6, classes)

    def forward(self, x, temperature=None):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool1d(x, 2)
        x = F.dropout(torch.relu(self.conv2(x)), 0.2, self.training)
        x = self.conv3(F.avg_pool1d(x, kernel_size=2)).relu()
        x = self.fc(torch.flatten(x, start_dim=1))
        if temperature is not None:
            x = x / temperature
        return F.log_softmax(x, dim=-1)


class DoubleConv(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.Conv2d(c_out, c_out, 3, padding=1), nn.ReLU()
        )

    def forward(self, x):
        return self.net(x)


class UNet(nn.Module):
    """Two levels; the steps up are transposed convolutions of 2x2 and, without weights, the nearest neighbour."""

    def __init__(self, classes=4):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down1, self.down2, self.bottom = DoubleConv(3, 8), DoubleConv(8, 8), DoubleConv(8, 12)
        self.up2, self.up1 = nn.ConvTranspose2d(12, 8, kernel_size=2, stride=2), nn.Upsample(scale_factor=2)
        self.dec2, self.dec1 = DoubleConv(16, 8), DoubleConv(16, 8)
        self.outc = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(self.pool(a))
        x = self.dec2(torch.cat([b, self.up2(self.bottom(self.pool(b)))], dim=1))
        x = self.dec1(torch.cat([a, self.up1(x)], dim=1))
        return self.outc(x)


class Autoencoder(nn.Module):
    """Stride 2 down to a map of 1x1, transposed layers up, LeakyReLU, a sigmoid; the code is a picture of one pixel."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(12, 6, 2, stride=2),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 12, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        return self.decoder(self.encoder(x))


class MLPAutoencoder(nn.Module):
    """A code of linear layers, batch norms in front of the activations; the picture is made of the last one's outputs."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Tanh())

    def forward(self, x):
        return self.decoder(self.encoder(x)).view(-1, 1, 8, 8)


# class, input shape, device, rewrites that keep the float function, and those that ask for training
NETS = {
    "resnet": (ResNet, (3, 32, 32), 85, ("stride", "adaptive_pool", "identity"), ("padded_pool",)),
    "mobilenet": (MobileNet, (3, 16, 16), 87, ("stride", "adaptive_pool"), ()),
    "vgg": (VGG, (3, 32, 32), 85, ("adaptive_pool",), ()),
    "kws": (KWS, (8, 32), 85, ("outside",), ()),
    "unet": (UNet, (3, 16, 16), 85, ("transposed", "upsample"), ()),
    "autoencoder": (Autoencoder, (1, 16, 16), 85, ("stride", "kernel", "transposed", "outside"), ("activation", "transposed_3x3")),
    "mlp": (MLPAutoencoder, (1, 8, 8), 85, ("outside",), ()),
}


def lively(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """`model` with batch-norm statistics of its own, as training leaves them."""
    torch.manual_seed(seed)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randint(-128, 128, (8, *shape)) / 128)
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.affine:
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(-0.3, 0.3)
    return model
