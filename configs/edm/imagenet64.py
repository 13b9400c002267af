"""EDM on ImageNet 64x64: edm-imagenet-64x64-cond-adm.pkl, FID 1.36 with EDM's stochastic sampler (511 network calls).

The FID is in the abstract of EDM's paper. This project does not have that sampler. The network is conditioned on
classes, so use late starts from the Gaussians of the classes (sampling.components=labels).

FID at 4, 6, 8 and 10 network calls: Euler (ddim here) 58.4, 34.0, 22.6, 16.7; Heun 249, 89.6, 37.7, 16.5;
DPM-Solver++(3M) 56.3, 15.1, 7.84, 5.67; UniPC-3 55.6, 14.3, 7.52, 5.53; iPNDM-4 33.8, 12.9, 7.20, 5.11.

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
