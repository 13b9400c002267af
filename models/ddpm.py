"""The DDPM U-Net (Ho et al. 2020), with the same layers as in the paper's code."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Real
from ml_collections import ConfigDict

from core.shapes import AnyArray, Images
from models.layers import (
    NONLINEARITIES,
    AttentionBlock,
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    conv3x3,
    dense,
    depth_to_space,
    group_norm,
    space_to_depth,
    timestep_embedding,
)


class DDPM(nnx.Module):
    """The U-Net. model.prediction says what it predicts. By default this is the noise in x.

    `down`, `middle` and `up` hold blocks of `models.layers`. `down` and `up` are lists of stages, and a stage is a list
    of blocks applied in order. The output of every down stage is pushed to a stack of skip connections. Every up stage
    pops one skip connection and concatenates it with its input along the channels. With model.patch_size = p, the U-Net
    treats each patch of p x p pixels as one pixel with more channels.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        model = config.model
        data = config.data
        self.nf = model.nf
        self.centered = data.centered
        self.act = NONLINEARITIES[model.nonlinearity]
        self.dtype = jnp.dtype(model.dtype)  # models.apply_model computes in it
        self.patch_size = model.patch_size
        patch_channels = data.num_channels * model.patch_size**2
        if model.conditional:
            self.temb_dense1 = dense(model.nf, 4 * model.nf, rngs=rngs)
            self.temb_dense2 = dense(4 * model.nf, 4 * model.nf, rngs=rngs)
        self.conv_in = conv3x3(patch_channels, model.nf, rngs=rngs)
        blocks = _BlockMaker(config, rngs)
        self.down = blocks.down()
        self.middle = blocks.middle()
        self.up = blocks.up()
        self.norm_out = group_norm(blocks.channels, model.num_groups, rngs=rngs)
        self.conv_out = conv3x3(blocks.channels, patch_channels, init_scale=0, rngs=rngs)

    def __call__(self, x: Images, t: Real[Array, "batch"], rngs: nnx.Rngs | None = None) -> Images:
        """Returns the prediction for x at times t. Dropout is applied if `rngs` is given."""
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

    def _time_embedding(self, t: Real[Array, "batch"], dtype: jnp.dtype) -> TimeEmbedding | None:
        if not hasattr(self, "temb_dense1"):
            return None
        return self.temb_dense2(self.act(self.temb_dense1(timestep_embedding(t, self.nf).astype(dtype))))


class _BlockMaker:
    """Makes the stages of the U-Net. Call `down`, `middle` and `up` once each, in this order.

    Attributes:
      channels: output channels of the last stage made so far.
      skips: the channels of the skip connections that no up stage uses yet.
    """

    def __init__(self, config: ConfigDict, rngs: nnx.Rngs):
        self.model = config.model
        self.rngs = rngs
        self.channels = config.model.nf
        self.skips = [config.model.nf]
        first_size = config.data.image_size // config.model.patch_size
        sizes = [first_size // 2**level for level in range(len(config.model.ch_mult))]
        self.has_attention = [size in config.model.attn_resolutions for size in sizes]

    def down(self) -> nnx.List:
        """Makes the stages from the finest level to the coarsest."""
        stages = []
        for level, mult in enumerate(self.model.ch_mult):
            if level:
                stages.append([Downsample(self.channels, with_conv=self.model.resamp_with_conv, rngs=self.rngs)])
                self.skips.append(self.channels)
            for _ in range(self.model.num_res_blocks):
                stages.append(self._stage(self.channels, mult, self.has_attention[level]))
                self.skips.append(self.channels)
        return nnx.List([nnx.List(stage) for stage in stages])

    def middle(self) -> nnx.List:
        """Makes the blocks at the coarsest level."""
        before = self._resnet(self.channels, self.channels)
        attention = self._attention()
        after = self._resnet(self.channels, self.channels)
        return nnx.List([before, attention, after])

    def up(self) -> nnx.List:
        """Makes the stages from the coarsest level to the finest."""
        stages = []
        for level, mult in reversed(list(enumerate(self.model.ch_mult))):
            for block in range(self.model.num_res_blocks + 1):
                stage = self._stage(self.channels + self.skips.pop(), mult, self.has_attention[level])
                if level and block == self.model.num_res_blocks:
                    stage.append(Upsample(self.channels, with_conv=self.model.resamp_with_conv, rngs=self.rngs))
                stages.append(stage)
        return nnx.List([nnx.List(stage) for stage in stages])

    def _stage(self, in_channels: int, mult: int, has_attention: bool) -> list[nnx.Module]:
        self.channels = self.model.nf * mult
        stage = [self._resnet(in_channels, self.channels)]
        if has_attention:
            stage.append(self._attention())
        return stage

    def _resnet(self, in_channels: int, out_channels: int) -> ResnetBlock:
        return ResnetBlock(
            in_channels,
            out_channels,
            temb_dim=4 * self.model.nf if self.model.conditional else 0,
            num_groups=self.model.num_groups,
            act=NONLINEARITIES[self.model.nonlinearity],
            dropout=self.model.dropout,
            rngs=self.rngs,
        )

    def _attention(self) -> AttentionBlock:
        return AttentionBlock(self.channels, num_groups=self.model.num_groups, rngs=self.rngs)


def _apply(blocks: nnx.List, h: Images, temb: TimeEmbedding | None, rngs: nnx.Rngs | None) -> AnyArray:
    for block in blocks:
        h = block(h, temb, rngs)
    return h
