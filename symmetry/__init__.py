"""Symmetry breaking in generation: in exact models, from the data's covariance, and in trained networks.

Generation follows dx = beta (x / 2 + score(x)) ds + sqrt(beta) dW. Its drift is minus the gradient of the potential
u = -beta (|x|^2 / 4 + log p_t(x)) (Raya and Ambrogioni 2023). At first u has a single minimum, the central fixed point.
A critical time is a time at which this fixed point becomes unstable along a direction.

Data can be centred without loss of generality: y = x - sqrt(ab) m follows the same equations as x, for the data minus
m, with any m, since sqrt(ab) m itself changes at the rate beta / 2. Here m is the mean of the data.
"""
