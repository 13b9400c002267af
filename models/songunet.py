"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456), in the form of Karras et al. (2022), appendix F."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Real
from ml_collections import ConfigDict

from core.schedules import per_image
from core.shapes import Images, Labels
from models.layers import conv3x3, dense, timestep_embedding
from models.unet_blocks import (
    BlockSettings,
    Embedding,
    apply_up,
    block_maker,
    class_weights,
    down,
    make_levels,
    norm,
    unbiased,
    up,
    wide,
)

EPSILON = 1e-6


class SongUNet(nnx.Module):
    """The U-Net. model.prediction says what it predicts. model.convention says how it receives the time.

    model.encoder: what is added after the first block of each level except the first level.
      "standard": nothing.
      "skip": a 1x1 convolution of the input of the network, after it is halved to the size of the level.
      "residual": the previous result of this addition (at first the input of the network), after a convolution and a
        halving.
    model.decoder: with "standard", the output comes from the finest level only. With "skip", every level contributes an
      image. The images are doubled to full size and added.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model = config.model
        data = config.data
        self.dtype = jnp.dtype(model.dtype)
        self.nf = model.nf
        self.label_dim = model.label_dim
        self.encoder, self.decoder = model.encoder, model.decoder
        self.taps = tuple(model.resample_filter)
        noise_channels = model.nf * model.noise_mult
        settings = BlockSettings(
            emb_dim=model.nf * model.emb_mult,
            dropout=model.dropout,
            epsilon=EPSILON,
            scale=math.sqrt(0.5) if model.skip_rescale else 1.0,
            taps=self.taps,
            num_heads=1,
            head_channels=0,
            group_channels=model.group_channels,
            scales_and_shifts=False,
            resampled_shortcut=True,
        )
        self.resamp_in_blocks = model.resamp_in_blocks
        self.centered = data.centered
        self.log_time, self.divides_by_sigma = model.log_time, model.divides_by_sigma
        self.sigmas = config.schedule.sigma_min, config.schedule.sigma_max, model.num_scales
        if model.embedding == "fourier":
            self.frequencies = nnx.Param(16 * jax.random.normal(rngs.params(), (noise_channels // 2,)))
        self.noise_channels = noise_channels
        self.label_dense = dense(model.label_dim, noise_channels, rngs=rngs) if model.label_dim else None
        self.augment_dense = unbiased(model.augment_dim, noise_channels, rngs) if model.augment_dim else None
        self.emb_dense1 = dense(noise_channels, settings.emb_dim, rngs=rngs)
        self.emb_dense2 = dense(settings.emb_dim, settings.emb_dim, rngs=rngs)
        self.conv_in = conv3x3(data.num_channels, model.nf, rngs=rngs)

        levels = make_levels(
            block_maker(settings, resamp_in_blocks=model.resamp_in_blocks, padding=((0, 1), (0, 1)), rngs=rngs),
            [model.nf * mult for mult in model.ch_mult],
            [data.image_size >> level in model.attn_resolutions for level in range(len(model.ch_mult))],
            stem=model.nf,
            num_blocks=model.num_res_blocks,
            attends_after_all=False,
        )
        self.down, self.up, self.taking = levels.down, levels.up, levels.taking
        self.pyramid = self._pyramid(config, rngs)
        out_channels = data.num_channels * (1 + model.learned_variance)
        ends = levels.channels if model.decoder == "skip" else levels.channels[-1:]
        self.norms_out = nnx.List([norm(channels, EPSILON, model.group_channels, rngs=rngs) for channels in ends])
        self.convs_out = nnx.List([conv3x3(channels, out_channels, init_scale=0, rngs=rngs) for channels in ends])

    def _pyramid(self, config: ConfigDict, rngs: nnx.Rngs) -> nnx.List:
        """Makes the layers that add halved images to every level except the first."""
        model = config.model
        widths = [model.nf, *(model.nf * mult for mult in model.ch_mult[:-1])]  # channels of x at each level's start
        channels = config.data.num_channels
        layers = []
        for width in widths[1:] if model.encoder != "standard" else ():
            if model.encoder == "skip":
                layers.append(dense(channels, width, rngs=rngs))
            else:
                padding = 1 + (len(self.taps) - 1) // 2  # 1 for the convolution, the rest for the filter
                layers.append(conv3x3(channels, width, padding=padding, rngs=rngs))
                channels = width
        return nnx.List(layers)

    def __call__(
        self,
        x: Images,
        t: Real[Array, "batch"],
        rngs: nnx.Rngs | None = None,
        labels: Labels | None = None,
        augment: Float[Array, "batch augment_dim"] | None = None,
    ) -> Images:
        """Returns the prediction for x at times t. Dropout is applied if `rngs` is given.

        labels: the class of each image, or weights of the classes; None is unconditional.
        augment: the augmentation that was applied to each training image; None stands for no augmentation.
        """
        emb = self._embedding(t, labels, augment).astype(x.dtype)
        image = x if self.centered else 2 * x - 1
        x = self.conv_in(image)
        skips = [x]
        for level, blocks in enumerate(self.down):
            for index, block in enumerate(blocks):
                x = block(x, emb, rngs)
                if level and index == 0 and self.pyramid:
                    x, image = self._add_halved(self.pyramid[level - 1], x, image)
                skips.append(x)
        output = None
        for level, blocks in enumerate(self.up):
            x = apply_up(blocks, self.taking, x, skips, emb, rngs)
            end = level if self.decoder == "skip" else level - len(self.up) + 1
            if end >= 0:
                part = self.convs_out[end](jax.nn.silu(self.norms_out[end](x)))
                output = part if output is None else up(output, self.taps) + part
        return output / per_image(self._sigma(t), output) if self.divides_by_sigma else output

    def _sigma(self, t: Real[Array, "batch"]) -> Float[Array, "batch"]:
        """Converts the network's time to sigma. The time is sigma itself, or an index. Index 0 is the highest sigma."""
        low, high, count = self.sigmas
        return t if self.log_time else high * (low / high) ** (jnp.floor(t) / (count - 1))

    def _add_halved(self, layer: nnx.Module, x: Images, image: Images) -> tuple[Images, Images]:
        """Returns (x with the halved image added, the halved image for the next level)."""
        if self.encoder == "skip":
            image = down(image, self.taps)
            return x + layer(image), image
        x = (x + down(layer(image), self.taps, padding=0)) / math.sqrt(2)
        return x, x

    def _embedding(self, t: Real[Array, "batch"], labels: Labels | None, augment: Array | None) -> Embedding:
        t = jnp.log(wide(t)) if self.log_time else wide(t)
        if hasattr(self, "frequencies"):
            frequencies = jax.lax.stop_gradient(self.frequencies[...]).astype(t.dtype)  # not trained
            angles = t[:, None] * (2 * math.pi * frequencies)
            emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        else:
            emb = timestep_embedding(t, self.noise_channels)
        if self.label_dense is not None:
            emb += self.label_dense(math.sqrt(self.label_dim) * class_weights(labels, self.label_dim, emb))
        if self.augment_dense is not None and augment is not None:
            emb += self.augment_dense(augment.astype(emb.dtype))
        return jax.nn.silu(self.emb_dense2(jax.nn.silu(self.emb_dense1(emb))))
