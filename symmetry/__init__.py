"""Symmetry breaking in generation: in exact models, from the data's covariance, and in trained networks.

Generation follows dx = beta (x / 2 + score(x)) dr + sqrt(beta) dW. Here r is continuous time, counted from noise to
data (in `critical.continuous_times`, s counts from data to noise). beta is the rate of the diffusion at that time, and
score is the gradient of log p_t, where p_t is the density of x_t. The drift is minus the gradient of the potential
u = -beta (|x|^2 / 4 + log p_t(x)) (Raya and Ambrogioni 2023). At first u has a single minimum, the central fixed point.
A critical time is a time at which this fixed point becomes unstable along a direction.

Data can be centred without loss of generality. ab stands for alpha_bar, the factor of the data's variance in x_t. For
any m, y = x - sqrt(ab) m follows the same equation as x, with the data minus m. The reason is that sqrt(ab) m grows at
the rate beta / 2, as the drift's term beta x / 2 does. In this package m is the mean of the data.
"""
