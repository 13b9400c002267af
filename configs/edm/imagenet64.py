"""EDM on ImageNet 64x64: edm-imagenet-64x64-cond-adm.pkl, FID 1.36 with EDM's stochastic sampler (511 network calls).

The FID is from EDM's paper, on 50,000 images; it was not measured here. This project does not have that sampler.

python main.py --mode=import --config=configs/edm/imagenet64.py --workdir=results/edm_imagenet64 \
    --source=edm-imagenet-64x64-cond-adm.pkl
"""

from ml_collections import ConfigDict

from configs.edm import edm_config


def get_config() -> ConfigDict:
    config = edm_config()
    config.data.update(dataset="imagenet", image_size=64, random_flip=False)
    config.model.update(name="adm", nf=192, ch_mult=(1, 2, 3, 4), num_res_blocks=3, attn_resolutions=(32, 16, 8))
    config.model.update(label_dim=1000, augment_dim=0)
    config.sampling.n_steps = 40
    return config
