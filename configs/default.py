"""Every field of a config with its default: the paper's CIFAR-10 settings. Data sets change what differs."""

from ml_collections import ConfigDict


def get_default_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 42
    # Statistics, classifiers and other files that belong to a data set; relative to the repository.
    config.assets_dir = "assets"

    config.training = training = ConfigDict()
    training.batch_size = 128
    training.n_iters = 1_300_000
    # The squared error of the noise weighs alpha_bar ** -weighting: 0 is the paper's loss, 1 is the squared error of v.
    training.weighting = 0.0
    training.log_freq = 50
    # Loss of the EMA weights on the test split; 0 never.
    training.eval_freq = 0
    # Checkpoints at multiples of snapshot_freq are kept, those at multiples of the other replaced by newer ones.
    training.snapshot_freq = 50_000
    training.snapshot_freq_for_preemption = 10_000
    # How many of the newest checkpoints there are, whatever their steps.
    training.max_to_keep = 2
    # Splits the optimiser's state and the EMA over the devices, which then gather the weights at every step.
    training.shard_state = False
    # A grid of sampling_size images at each snapshot, drawn as config.sampling says but without a late start.
    training.snapshot_sampling = True
    training.sampling_size = 64

    config.data = data = ConfigDict()
    data.dataset = "cifar10"
    # Where TFDS keeps what --mode=prepare prepares; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data.data_dir = ""
    # Images of your own in place of TFDS's: a folder, .npy, .npz or IDX files.
    data.path = ""
    # The share of data.path that is the test split, where it has none of its own.
    data.held_out = 0.1
    # Do without the pictures that cannot be read; else one of them is a mistake.
    data.skip_bad = False
    # Where every decoded split is kept; relative to the repository. It may be deleted at any time.
    data.cache_dir = "data/decoded"
    data.image_size = 32
    data.num_channels = 3
    data.random_flip = True
    # The network sees [-1, 1] where centered, else [0, 1].
    data.centered = True
    # Adds uniform noise within one of the 256 grey levels.
    data.uniform_dequantization = False

    config.model = model = ConfigDict()
    model.name = "ddpm"
    # What the network computes in: "float32", or "bfloat16" on a GPU or TPU. Weights are float32 in any case.
    model.dtype = "float32"
    # Betas rise in num_scales equal steps from beta_min / num_scales to beta_max / num_scales.
    model.beta_min = 0.1
    model.beta_max = 20.0
    model.num_scales = 1000
    # The decay is min(ema_rate, (1 + k) / (10 + k)) after k updates.
    model.ema_rate = 0.9999
    model.dropout = 0.1
    model.nf = 128
    # Pixels of the U-Net are patches of patch_size x patch_size pixels of the image: 2 makes large images four times
    # as cheap. The paper's networks, and those of diffusers, have 1.
    model.patch_size = 1
    # What the network predicts: the noise "eps", or "v" = signal eps - sigma x_0, which keeps the error of x_0 bounded
    # where there is little signal. Samplers see eps either way.
    model.prediction = "eps"
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 2
    # Image sizes at which residual blocks are followed by attention; the middle always has it.
    model.attn_resolutions = (16,)
    model.resamp_with_conv = True
    # Whether the network is told t.
    model.conditional = True
    model.normalization = "GroupNorm"
    # Of GroupNorm. As many as channels make each forget its own mean: a network of few channels wants fewer.
    model.num_groups = 32
    model.nonlinearity = "swish"

    config.optim = optim = ConfigDict()
    # "Adam", or "Muon" for kernels and Adam for the rest.
    optim.optimizer = "Adam"
    optim.lr = 2e-4
    optim.beta1 = 0.9
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    # Steps of linear warm-up from 0.
    optim.warmup = 5000
    # After the warm-up: "constant", or "cosine" down to 0 at n_iters.
    optim.schedule = "constant"
    # Largest norm of the gradient.
    optim.grad_clip = 1.0

    config.sampling = sampling = ConfigDict()
    sampling.sampler = "ddim"
    sampling.n_steps = 10
    # Of the time grid: "linear", "quadratic", "logsnr", "trailing", or "auto", chosen for the network by a trial.
    sampling.spacing = "linear"
    # Clips every predicted x_0 to the range of the data.
    sampling.clip_x0 = False
    # The Gaussian late start, and where it starts; -1: where a trial of at most 15% of the evaluation's network calls
    # finds best. Without it every sampler starts at num_scales - 1.
    sampling.gls = False
    sampling.t_start = 500
    # What a late start is to be compared with: "afs" takes the first noise prediction of a full start from the prior in
    # place of the network, "isotropic" draws a late start from the data's mean and mean variance alone, and with
    # "no_history" a multistep solver opens as if nothing were known above the start.
    sampling.baseline = ""
    # How many directions of the data's covariance fid_stats keeps where it is too large to form, above d = 4,096.
    sampling.rank = 256

    config.eval = evaluation = ConfigDict()
    # The step of the checkpoint; -1 is the newest.
    evaluation.checkpoint = -1
    evaluation.batch_size = 500
    evaluation.num_samples = 50_000
    # Score the samples by the distance between their features and the training split's.
    evaluation.enable_fid = True
    # "inception" for FID proper, "classifier" for the data set's own.
    evaluation.features = "classifier"
    # Images that the feature network sees at once.
    evaluation.feature_batch_size = 100
    # A .pth or .npz with PyTorch's names in place of the published weights, which are fetched on first use.
    evaluation.inception_weights = ""
    # Statistics in place of fid_stats' own: any file with mu and sigma, or mu and cov.
    evaluation.reference = ""
    # "module:function", from uint8 images [B, H, W, C] to scores [B, K], whose labels are counted; "" the data's own.
    evaluation.classifier = ""
    # Keep every sample in samples.npz, not only those of the grid.
    evaluation.enable_sampling = False
    # Loss of the EMA weights on the test split.
    evaluation.enable_loss = False
    # Bits per dimension of the EMA weights on bpd_num_images images, evenly spaced, of the split bpd_dataset.
    evaluation.enable_bpd = False
    evaluation.bpd_dataset = "test"
    evaluation.bpd_num_images = 10_000
    # The divergence of the flow from one derivative a dimension, in place of Hutchinson's estimate from a single one.
    evaluation.bpd_exact_divergence = False

    # What --mode=sweep runs: every sampler at every n_steps, without a late start and from each of t_starts.
    config.sweep = sweep = ConfigDict()
    sweep.samplers = ("ddpm", "ddim", "pndm")
    sweep.n_steps = (3, 5, 10)
    # Also "300:700:25" for those from 300 to 700 by 25, and "auto".
    sweep.t_starts = (300, 400, 500, 600, 700)
    # Of "afs", "isotropic" and "no_history", which to run beside them.
    sweep.baselines = ()

    # What --mode=analyze measures with: training images, times, leading eigenvalues, and steps of a trajectory.
    config.analysis = analysis = ConfigDict()
    analysis.num_images = 128
    analysis.num_times = 25
    analysis.num_eigenvalues = 4
    analysis.n_steps = 100
    # Its own scored runs, by DDPM and DDIM: how many images each draws (0: no such runs), and the late starts of those
    # with one step for every t, which evaluate the network t + 1 times an image.
    analysis.score_samples = 5000
    analysis.score_starts = (100, 200, 300, 400, 600)
    return config.lock()
