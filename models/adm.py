"""The U-Nets of ADM (Dhariwal and Nichol 2021, arXiv 2105.05233) and improved-diffusion (arXiv 2102.09672).

With the default settings, this is the ADM network of Karras et al. (2022), appendix F.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Real
from ml_collections import ConfigDict

from core.shapes import Images, Labels
from models.layers import conv3x3, dense
from models.unet_blocks import (
    BlockSettings,
    Embedding,
    apply_up,
    block_maker,
    class_weights,
    make_levels,
    norm,
    unbiased,
    wide,
)

EPSILON = 1e-5


class ADM(nnx.Module):
    """The U-Net. model.prediction says what it predicts. model.convention says how it receives the time.

    model.resamp_in_blocks: whether residual blocks halve and double the images; if not, convolutions do.
    model.scale_shift: whether the embedding scales and shifts the output of the second norm of a block; if not, the
      embedding is added before that norm.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model = config.model
        data = config.data
        self.dtype = jnp.dtype(model.dtype)
        self.nf = model.nf
        self.label_dim = model.label_dim
        settings = BlockSettings(
            emb_dim=model.nf * model.emb_mult,
            dropout=model.dropout,
            epsilon=EPSILON,
            scale=1.0,
            taps=(1, 1),
            num_heads=model.num_heads,
            head_channels=model.head_channels,
            group_channels=model.group_channels,
            scales_and_shifts=model.scale_shift,
            resampled_shortcut=False,
        )
        self.label_dense = unbiased(model.label_dim, settings.emb_dim, rngs) if model.label_dim else None
        self.augment_dense = unbiased(model.augment_dim, model.nf, rngs) if model.augment_dim else None
        self.emb_dense1 = dense(model.nf, settings.emb_dim, rngs=rngs)
        self.emb_dense2 = dense(settings.emb_dim, settings.emb_dim, rngs=rngs)
        widths = [model.nf * mult for mult in model.ch_mult]
        self.conv_in = conv3x3(data.num_channels, widths[0], rngs=rngs)

        levels = make_levels(
            block_maker(settings, resamp_in_blocks=model.resamp_in_blocks, padding=1, rngs=rngs),
            widths,
            [data.image_size >> level in model.attn_resolutions for level in range(len(widths))],
            stem=widths[0],
            num_blocks=model.num_res_blocks,
            attends_after_all=True,
        )
        self.down, self.up, self.taking = levels.down, levels.up, levels.taking
        out_channels = data.num_channels * (1 + model.learned_variance)
        self.norm_out = norm(levels.channels[-1], EPSILON, model.group_channels, rngs=rngs)
        self.conv_out = conv3x3(levels.channels[-1], out_channels, init_scale=0, rngs=rngs)

    def __call__(
        self,
        x: Images,
        t: Real[Array, "batch"],
        rngs: nnx.Rngs | None = None,
        labels: Labels | None = None,
        augment: Float[Array, "batch augment_dim"] | None = None,
    ) -> Images:
        """Returns the prediction for x at times t. A learned variance, if any, is in further channels.

        The arguments are those of `SongUNet`.
        """
        emb = self._embedding(t, labels, augment).astype(x.dtype)
        x = self.conv_in(x)
        skips = [x]
        for blocks in self.down:
            for block in blocks:
                x = block(x, emb, rngs)
                skips.append(x)
        for blocks in self.up:
            x = apply_up(blocks, self.taking, x, skips, emb, rngs)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))

    def _embedding(self, t: Real[Array, "batch"], labels: Labels | None, augment: Array | None) -> Embedding:
        t = wide(t)
        half = self.nf // 2
        angles = t[:, None] * jnp.exp(-jnp.log(1e4) / half * jnp.arange(half)).astype(t.dtype)
        emb = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        if self.augment_dense is not None and augment is not None:
            emb += self.augment_dense(augment.astype(emb.dtype))
        emb = self.emb_dense2(jax.nn.silu(self.emb_dense1(emb)))
        if self.label_dense is not None:
            emb += self.label_dense(class_weights(labels, self.label_dim, emb))
        return jax.nn.silu(emb)
