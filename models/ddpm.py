"""The DDPM U-Net (Ho et al. 2020), layer for layer the network of the paper's code."""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from models.layers import (
    NONLINEARITIES,
    AttentionBlock,
    Downsample,
    ResnetBlock,
    Upsample,
    conv3x3,
    dense,
    depth_to_space,
    group_norm,
    space_to_depth,
    timestep_embedding,
)


def linear_betas(model: ConfigDict) -> tuple[float, float, int]:
    """The arguments of `NoiseSchedule.linear`."""
    return model.beta_min / model.num_scales, model.beta_max / model.num_scales, model.num_scales


class DDPM(nnx.Module):
    """Predicts the noise in x, or with model.prediction="v" what `NoiseSchedule.eps_of_v` makes it of.

    `down` and `up` are lists of stages, a stage a list of blocks applied in turn. The output of every down stage is
    kept, and every up stage begins by taking one back, the newest first. With model.patch_size p the U-Net works on
    images of a p-th of the size, whose pixels are patches of p x p.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model, data = config.model, config.data
        self.nf, self.centered, self.act = model.nf, data.centered, NONLINEARITIES[model.nonlinearity]
        self.v_betas = linear_betas(model) if model.prediction == "v" else None  # a tuple, since graphdefs are hashed
        self.dtype = jnp.dtype(model.dtype)  # of the computation: see models.apply_model
        self.patch_size, patch_channels = model.patch_size, data.num_channels * model.patch_size**2
        temb_dim = 4 * model.nf if model.conditional else 0
        sizes = [data.image_size // model.patch_size // 2**level for level in range(len(model.ch_mult))]
        has_attention = [size in model.attn_resolutions for size in sizes]

        def resnet(channels, out_channels):
            options = {"num_groups": model.num_groups, "act": self.act, "dropout": model.dropout}
            return ResnetBlock(channels, out_channels, temb_dim, **options, rngs=rngs)

        def attention(channels):
            return AttentionBlock(channels, num_groups=model.num_groups, rngs=rngs)

        if model.conditional:
            self.temb_dense1 = dense(model.nf, temb_dim, rngs=rngs)
            self.temb_dense2 = dense(temb_dim, temb_dim, rngs=rngs)

        self.conv_in = conv3x3(patch_channels, model.nf, rngs=rngs)
        channels, skips, down = model.nf, [model.nf], []
        for level, mult in enumerate(model.ch_mult):
            if level:
                down.append([Downsample(channels, with_conv=model.resamp_with_conv, rngs=rngs)])
                skips.append(channels)
            for _ in range(model.num_res_blocks):
                stage = [resnet(channels, model.nf * mult)]
                channels = model.nf * mult
                if has_attention[level]:
                    stage.append(attention(channels))
                down.append(stage)
                skips.append(channels)

        middle = [resnet(channels, channels), attention(channels), resnet(channels, channels)]

        up = []
        for level, mult in reversed(list(enumerate(model.ch_mult))):
            for block in range(model.num_res_blocks + 1):
                stage = [resnet(channels + skips.pop(), model.nf * mult)]
                channels = model.nf * mult
                if has_attention[level]:
                    stage.append(attention(channels))
                if level and block == model.num_res_blocks:
                    stage.append(Upsample(channels, with_conv=model.resamp_with_conv, rngs=rngs))
                up.append(stage)

        self.down = nnx.List([nnx.List(stage) for stage in down])
        self.middle = nnx.List(middle)
        self.up = nnx.List([nnx.List(stage) for stage in up])
        self.norm_out = group_norm(channels, model.num_groups, rngs=rngs)
        self.conv_out = conv3x3(channels, patch_channels, init_scale=0, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """eps, or v, [B,H,W,C] for x [B,H,W,C] at times t [B]; dropout is on where rngs gives its keys."""
        temb = self._time_embedding(t, x.dtype)
        h = self.conv_in(space_to_depth(x if self.centered else 2 * x - 1, self.patch_size))
        skips = [h]
        for stage in self.down:
            h = _apply(stage, h, temb, rngs)
            skips.append(h)
        h = _apply(self.middle, h, temb, rngs)
        for stage in self.up:
            h = _apply(stage, jnp.concatenate([h, skips.pop()], axis=-1), temb, rngs)
        return depth_to_space(self.conv_out(self.act(self.norm_out(h))), self.patch_size)

    def _time_embedding(self, t, dtype):
        if not hasattr(self, "temb_dense1"):
            return None
        return self.temb_dense2(self.act(self.temb_dense1(timestep_embedding(t, self.nf).astype(dtype))))


def _apply(blocks, h, temb, rngs):
    for block in blocks:
        h = block(h, temb, rngs)
    return h
