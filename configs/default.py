"""All fields of a config with their defaults, the paper's settings for CIFAR-10. Config files override some of them.

Fields without a comment have their usual meaning for diffusion models.
"""

from ml_collections import ConfigDict


def get_default_config() -> ConfigDict:
    """A new config with every field at its default. It is locked: fields can be changed, but not added."""
    config = ConfigDict()
    # The seed of all random numbers: initial weights, training and sampling.
    config.seed = 42
    # Folder of statistics and classifiers of data sets, relative to the repository.
    config.assets_dir = "assets"

    config.training = training = ConfigDict()
    training.batch_size = 128
    # Number of training steps.
    training.n_iters = 1_300_000
    # The loss at t is the squared error of eps times alpha_bar(t) ** -weighting. 0 is the paper's loss; 1 is the
    # squared error of v = signal eps - sigma x_0.
    training.weighting = 0.0
    # Steps between two rows of the log.
    training.log_freq = 50
    # Steps between two evaluations of the EMA weights' loss on the test split; 0 means never.
    training.eval_freq = 0
    # A checkpoint is saved every snapshot_freq steps and is never deleted. Checkpoints for resuming are saved every
    # snapshot_freq_for_preemption steps and are deleted when there are max_to_keep newer checkpoints.
    training.snapshot_freq = 50_000
    training.snapshot_freq_for_preemption = 10_000
    # Number of newest checkpoints that are always kept.
    training.max_to_keep = 2
    # Whether the optimiser state and the EMA weights are split over the devices instead of copied to each device. This
    # saves memory and costs communication at every step.
    training.shard_state = False
    # Whether a grid of sampling_size samples is saved every snapshot_freq steps. It is drawn with config.sampling, but
    # without a late start.
    training.snapshot_sampling = True
    training.sampling_size = 64

    config.data = data = ConfigDict()
    data.dataset = "cifar10"
    # Folder where TFDS stores the data sets that --mode=prepare prepares. If empty, it is the folder in the environment
    # variable TFDS_DATA_DIR, or else ~/tensorflow_datasets.
    data.data_dir = ""
    # Your own images: a folder of pictures or IDX files, or an array file. If empty, the images come from TFDS.
    data.path = ""
    # Share of the images at data.path that becomes the test split, if the files have no test split of their own.
    data.held_out = 0.1
    # Whether pictures that cannot be read are left out. If false, a single such picture is an error.
    data.skip_bad = False
    # Folder of the cache of decoded images, relative to the repository. You may delete it at any time.
    data.cache_dir = "data/decoded"
    data.image_size = 32
    data.num_channels = 3
    # Whether each training image is flipped left to right with probability 1/2.
    data.random_flip = True
    # Whether the network's range is [-1, 1]; otherwise it is [0, 1].
    data.centered = True
    # Whether training adds uniform noise within one of the 256 grey levels to each pixel.
    data.uniform_dequantization = False

    config.schedule = schedule = ConfigDict()
    # The noise schedule, which has model.num_scales times:
    #   "linear": the paper's schedule.
    #   "scaled_linear": Stable Diffusion's schedule.
    #   "sigmoid": equal steps in the logit of beta, as in diffusers.
    #   "cosine": improved-diffusion's schedule (squaredcos_cap_v2 in diffusers).
    #   "vp": the continuous variance-preserving SDE.
    #   "ve": equal steps in log sigma.
    #   "edm": equal steps in sigma ** (1 / 7).
    #   "flow": rectified flow.
    #   "table": the values in schedule.alpha_bars.
    schedule.name = "linear"
    # The range of sigma, the ratio of noise to signal, for "ve" and "edm".
    schedule.sigma_min = 0.002
    schedule.sigma_max = 80.0
    # The alpha_bars of "table", descending.
    schedule.alpha_bars = ()
    # Whether the schedule is rescaled so that no signal is left at the last time (Lin et al. 2024). At that time eps
    # does not determine x_0, so the network needs another model.prediction.
    schedule.zero_snr = False
    # Whether "linear", "scaled_linear", "sigmoid" and "cosine" are rounded to float32 as in diffusers. Networks of
    # diffusers were trained with the rounded schedule.
    schedule.single_precision = False

    config.model = model = ConfigDict()
    # "ddpm" (the paper's U-Net), "songunet" (DDPM++ and NCSN++), "adm" or "unet2d" (the UNet2DModel of diffusers).
    model.name = "ddpm"
    # The dtype of the network's computations: "float32", or "bfloat16" for GPUs and TPUs. Weights are always float32.
    model.dtype = "float32"
    # The noise schedule has num_scales times. The betas of "linear", "scaled_linear" and "sigmoid" run from
    # beta_min / num_scales to beta_max / num_scales, and those of "vp" from beta_min to beta_max.
    model.beta_min = 0.1
    model.beta_max = 20.0
    model.num_scales = 1000
    # The decay of the EMA weights after k updates is min(ema_rate, (1 + k) / (10 + k)).
    model.ema_rate = 0.9999
    model.dropout = 0.1
    # Base number of channels of the U-Net. Level i has nf * ch_mult[i] channels and num_res_blocks residual blocks.
    model.nf = 128
    # The U-Net works on patches of patch_size x patch_size pixels. With 2, large images cost a quarter of the time. The
    # networks of the paper and of diffusers have 1.
    model.patch_size = 1
    # The quantity that the network predicts: "eps", the noise; "v" = signal eps - sigma x_0; "x0"; "flow" = eps - x_0;
    # "score"; "negative_eps"; or "edm", the F of Karras et al. (2022). Samplers receive eps and x_0 in all cases. At
    # high noise, the error of the predicted x_0 stays bounded with "v", "x0", "flow" and "edm" only.
    model.prediction = "eps"
    # The input of the network, and how the noise level is encoded as its time input (see core/conventions.py): "ddpm",
    # x_t and t; "iddpm", x_t and integer t; "rescaled", x_t and 1000 t / T; "vp", "sigma" and "ve_index", as in Song et
    # al. (2021); "ve" and "edm", as in Karras et al. (2022); or "flow".
    model.convention = "ddpm"
    # The standard deviation of the data in the formulas of "edm".
    model.sigma_data = 0.5
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 2
    # Image sizes at which every residual block is followed by attention. The middle of the U-Net always has attention.
    model.attn_resolutions = (16,)
    # Whether downsampling and upsampling include a convolution.
    model.resamp_with_conv = True
    # Whether the network has t as an input.
    model.conditional = True
    model.normalization = "GroupNorm"
    # Number of groups in GroupNorm. If there are as many groups as channels, each channel loses its mean, so narrow
    # networks need fewer groups.
    model.num_groups = 32
    # "swish", "relu", "elu" or "lrelu".
    model.nonlinearity = "swish"

    # Number of classes that the network is conditioned on.
    model.label_dim = 0
    # The label that means "no class", for a network that was trained with such a label; -1 for other networks. For
    # "songunet" and "adm" this label is label_dim.
    model.null_class = -1

    # Fields of "songunet" and "adm".
    # Length of the augmentation input.
    model.augment_dim = 0
    # Channels of the time embedding before and after its dense layers, in units of nf.
    model.noise_mult = 1
    model.emb_mult = 4
    # Whether the network has twice the output channels, the second half for a learned variance. Samplers ignore it.
    model.learned_variance = False
    # Least number of channels in a group of GroupNorm.
    model.group_channels = 4
    # Whether residual blocks change the resolution. If false, convolutions do.
    model.resamp_in_blocks = True

    # Fields of "songunet" only.
    # The time embedding: "positional" or "fourier".
    model.embedding = "positional"
    # Whether the logarithm of the time is embedded.
    model.log_time = False
    # Whether the output is divided by sigma.
    model.divides_by_sigma = False
    # How downsampled images enter the encoder: "standard" (not at all), "residual" or "skip".
    model.encoder = "standard"
    # How the decoder forms the output: "standard", or "skip" (the sum of an output at each resolution).
    model.decoder = "standard"
    # The resampling filter along one axis.
    model.resample_filter = (1, 1)
    # Whether the sums of residual blocks are divided by sqrt(2).
    model.skip_rescale = True

    # Fields of "adm" only.
    # Number of attention heads. If 0, each head has head_channels channels.
    model.num_heads = 0
    model.head_channels = 64
    # Whether the time embedding scales and shifts the activations. If false, it is added to them.
    model.scale_shift = True

    # Field of "unet2d" only.
    # The settings that differ from the defaults of diffusers, as JSON with the names of its config.json.
    # The image size and the channels follow from config.data. The network ignores the other fields of config.model that
    # describe layers.
    model.unet2d = "{}"

    config.optim = optim = ConfigDict()
    # "Adam", or "Muon", which uses Muon for the kernels of layers and Adam for all other weights.
    optim.optimizer = "Adam"
    optim.lr = 2e-4
    # Decay of the mean gradient in Adam. The decay of Muon's momentum is always 0.95.
    optim.beta1 = 0.9
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    # Steps in which the learning rate rises linearly from 0 to lr.
    optim.warmup = 5000
    # The learning rate after the warm-up: "constant", or "cosine", which decreases to 0 at training.n_iters.
    optim.schedule = "constant"
    # Gradients with a larger norm are scaled down to this norm.
    optim.grad_clip = 1.0

    config.sampling = sampling = ConfigDict()
    sampling.sampler = "ddim"
    # Number of steps. Some samplers evaluate the network more than once per step.
    sampling.n_steps = 10
    # Spacing of the time grid: "linear", "quadratic", "logsnr", "trailing", "sigma_rho" (the grid of EDM), "gaussian"
    # (the best grid for DDIM on the data's Gaussian, see sampling/gaussian_grid.py), or "auto", which computes a grid
    # for the network and n_steps (see sampling/auto_grid.py).
    sampling.spacing = "linear"
    # Whether every predicted x_0 is clipped to the network's range.
    sampling.clip_x0 = False
    # Whether sampling has a Gaussian late start. Without one, sampling begins at num_scales - 1.
    sampling.gls = False
    # The time of the late start. -1 is the automatic start: several starts are compared, and the best is used (see
    # sampling/auto_start.py). The comparison costs at most 15% of the network calls of an evaluation of about 2,000
    # images or more (3,300 for "ddpm"), and a larger share of a smaller evaluation.
    sampling.t_start = 500
    # The Gaussians of a late start: "1", one Gaussian for all data; "labels", a mixture with one Gaussian per class; or
    # a number of clusters, such as "10", for a mixture with one Gaussian per cluster. fid_stats fits them.
    sampling.components = "1"
    # For networks with classes, or with components="labels": the classes that are drawn, such as (3, 7); empty for all
    # classes.
    sampling.classes = ()
    # The weight of classifier-free guidance, for a network with a null class; 1 means no guidance. With guidance, every
    # step costs twice as many network calls.
    sampling.guidance = 1.0
    # An alternative with which late starts are compared; empty for none:
    #   "leading": a start from pure noise at T - T/n, where DDIM's own code starts.
    #   "afs": a start from pure noise whose first noise prediction is a formula instead of a network call.
    #   "isotropic": a late start from Gaussians with the data's means and mean variances, but without covariances.
    #   "no_history": a late start in which multistep solvers do not get the Gaussians' predictions as history.
    sampling.baseline = ""
    # Number of eigenpairs of the data's covariance that fid_stats keeps for images of more than 4,096 values, whose
    # covariance is too large to be formed. For smaller images it keeps all eigenpairs.
    sampling.rank = 256

    config.eval = evaluation = ConfigDict()
    # Step of the checkpoint; -1 is the newest.
    evaluation.checkpoint = -1
    # Number of images that are generated at a time.
    evaluation.batch_size = 500
    evaluation.num_samples = 50_000
    # Whether the samples are scored by the Fréchet distance between their features and those of the training split. The
    # distance is the FID only if eval.features is "inception".
    evaluation.enable_fid = True
    # The feature network: "inception" for the FID, "classifier" for a classifier trained on the data set, or
    # "random_conv" for a network with fixed random weights, which needs neither labels nor a download.
    evaluation.features = "classifier"
    # Number of images that the feature network processes at a time.
    evaluation.feature_batch_size = 100
    # Your own Inception weights: a .pth, or a .npz with PyTorch's parameter names. If empty, the published weights are
    # downloaded on first use.
    evaluation.inception_weights = ""
    # Your own reference statistics: a .npz with mu and sigma, or mu and cov. If empty, the statistics of fid_stats.
    evaluation.reference = ""
    # Your own classifier for counting the labels of samples: "module:function", which maps uint8 images [batch, height,
    # width, channels] to scores [batch, classes]. If empty, the data set's classifier is used.
    evaluation.classifier = ""
    # Whether samples.npz contains all samples. If false, it contains only those of the sample grid.
    evaluation.enable_sampling = False
    # Whether the loss of the EMA weights on the test split is computed.
    evaluation.enable_loss = False
    # Whether bits per dimension are computed with the EMA weights, on bpd_num_images evenly spaced images of the split
    # bpd_dataset ("train" or "test").
    evaluation.enable_bpd = False
    evaluation.bpd_dataset = "test"
    evaluation.bpd_num_images = 10_000
    # Whether the divergence of the probability-flow ODE is exact, from one derivative per dimension. If false, it is
    # Hutchinson's estimate from one random direction.
    evaluation.bpd_exact_divergence = False

    # The runs of --mode=sweep: every sampler with every n_steps, from pure noise and from each of t_starts.
    config.sweep = sweep = ConfigDict()
    sweep.samplers = ("ddpm", "ddim", "pndm")
    sweep.n_steps = (3, 5, 10)
    # The late starts: times, ranges such as "300:700:25" (from 300 to 700 in steps of 25), and "auto".
    sweep.t_starts = (300, 400, 500, 600, 700)
    # Values of sampling.components for the late starts, such as ("1", "labels", "10"). If empty, sampling.components is
    # the only value.
    sweep.components = ()
    # Values of sampling.baseline for additional runs: any of "leading", "afs", "isotropic" and "no_history".
    sweep.baselines = ()

    # The measurements of --mode=analyze.
    config.analysis = analysis = ConfigDict()
    # Number of training images on which the network is measured.
    analysis.num_images = 128
    # Number of times at which the drift's Jacobian and other quantities are measured.
    analysis.num_times = 25
    # Number of leading eigenvalues of the drift's Jacobian that are measured.
    analysis.num_eigenvalues = 4
    # Number of steps of the generated trajectories.
    analysis.n_steps = 100
    # Number of images in each scored run of DDPM or DDIM. If 0, there are no scored runs.
    analysis.score_samples = 5000
    # Late starts of the scored runs with one step for every t, which evaluate the network t + 1 times per image.
    analysis.score_starts = (100, 200, 300, 400, 600)
    return config.lock()
