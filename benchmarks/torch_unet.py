"""Times the paper's network and training step in PyTorch, for the comparison in train_step.py.

python -m benchmarks.torch_unet ARGUMENTS

train_step.py runs this module with an interpreter that has PyTorch. ARGUMENTS are the arguments of Workload as a JSON
object. Each line of standard input is "forward" or "train". For each, this module prints the milliseconds of a few
calls as a JSON list.
"""

import json
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import milliseconds


class ResnetBlock(nn.Module):
    def __init__(self, channels, out_channels, temb_dim, dropout):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, 1e-6)
        self.norm2 = nn.GroupNorm(32, out_channels, 1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.temb = nn.Linear(temb_dim, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x))) + self.temb(F.silu(temb))[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class AttentionBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, 1e-6)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x, temb):
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", query, key) * x.shape[1] ** -0.5, dim=-1)
        return x + self.out(torch.einsum("bij,bcj->bci", weights, value).reshape(x.shape))


class Downsample(nn.Conv2d):
    def forward(self, x, temb):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    def forward(self, x, temb):
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    def __init__(self, image_size, num_channels, nf, ch_mult, num_res_blocks, attn_resolutions, dropout):
        super().__init__()
        self.nf = nf
        channels = nf
        skips = [nf]
        down = []
        up = []

        def stage(inputs, level):
            layers = [ResnetBlock(inputs, nf * ch_mult[level], 4 * nf, dropout)]
            if image_size >> level in attn_resolutions:
                layers.append(AttentionBlock(nf * ch_mult[level]))
            return layers

        for level, mult in enumerate(ch_mult):
            if level:
                down.append([Downsample(channels, channels, 3, stride=2)])
                skips.append(channels)
            for _ in range(num_res_blocks):
                down.append(stage(channels, level))
                channels = nf * mult
                skips.append(channels)
        middle = [ResnetBlock(channels, channels, 4 * nf, dropout) for _ in range(2)]
        middle.insert(1, AttentionBlock(channels))
        for level in reversed(range(len(ch_mult))):
            for _ in range(num_res_blocks + 1):
                up.append(stage(channels + skips.pop(), level))
                channels = nf * ch_mult[level]
            if level:
                up[-1].append(Upsample(channels, channels, 3, padding=1))

        self.temb = nn.Sequential(nn.Linear(nf, 4 * nf), nn.SiLU(), nn.Linear(4 * nf, 4 * nf))
        self.conv_in = nn.Conv2d(num_channels, nf, 3, padding=1)
        self.down, self.up = (nn.ModuleList(map(nn.ModuleList, stages)) for stages in (down, up))
        self.middle = nn.ModuleList(middle)
        self.norm_out = nn.GroupNorm(32, channels, 1e-6)
        self.conv_out = nn.Conv2d(channels, num_channels, 3, padding=1)

    def forward(self, x, t):
        angles = t[:, None] * torch.exp(-math.log(1e4) / (self.nf // 2 - 1) * torch.arange(self.nf // 2))
        temb = self.temb(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down:
            for block in stage:
                h = block(h, temb)
            skips.append(h)
        for block in self.middle:
            h = block(h, temb)
        for stage in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            for block in stage:
                h = block(h, temb)
        return self.conv_out(F.silu(self.norm_out(h)))


class Workload:
    """The work that is timed: a forward pass, and a training step as in the paper (loss, Adam, EMA)."""

    def __init__(self, batch, image_size, num_channels, **network):
        self.net = UNet(image_size, num_channels, **network)
        self.images = torch.randint(0, 256, (batch, num_channels, image_size, image_size))
        self.alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 2e-4)
        self.ema = [p.detach().clone() for p in self.net.parameters()]

    def forward(self):
        self.net.eval()
        with torch.no_grad():
            self.net(self.images / 127.5 - 1, torch.full((len(self.images),), 500.0))

    def train(self):
        self.net.train()
        t = torch.randint(0, 1000, (len(self.images),))
        x0 = self.images / 127.5 - 1
        noise = torch.randn_like(x0)
        ab = self.alpha_bars[t][:, None, None, None]
        loss = F.mse_loss(self.net(ab.sqrt() * x0 + (1 - ab).sqrt() * noise, t.float()), noise)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema, self.net.parameters(), strict=True):
                average.sub_(1e-4 * (average - parameter))


if __name__ == "__main__":
    workload = Workload(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(milliseconds(getattr(workload, line.strip()))), flush=True)
