"""Symmetry breaking in generation, measured in three ways: in exact models, from the covariance, and in networks.

Generation follows dx = beta (x / 2 + score(x)) dr + sqrt(beta) dW. Here r is continuous time, which runs from noise to
data. (The time s of `critical.continuous_times` runs from data to noise.) beta is the rate of the diffusion at time r.
score(x) is the gradient of log p_t(x), where p_t is the density of x_t. The drift is minus the gradient of the
potential u = -beta (|x|^2 / 4 + log p_t(x)) (Raya and Ambrogioni 2023). Near pure noise u has a single minimum, the
central fixed point. A critical time is a time at which this fixed point becomes unstable along a direction.

The data can be centred without loss of generality. Let ab be alpha_bar, and m any image. Then y = x - sqrt(ab) m
follows the same equation as x, with the score of the data shifted by -m. The reason is that sqrt(ab) m
grows at the rate beta / 2, like the term beta x / 2 of the drift. In this package m is the mean of the data.
"""
