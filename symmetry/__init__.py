"""Where the symmetry of generation breaks: in exact models, from a data set's spectrum, and on a trained network.

Generation follows dx = beta (x / 2 + score(x)) ds + sqrt(beta) dW, whose drift is minus the gradient of the potential
u = -beta (|x|^2 / 4 + log p_t(x)) (Raya and Ambrogioni 2023). Early on u has one minimum; the critical times are those
at which that fixed point stops being one, direction by direction.

All of this is about a centre: with y = x - sqrt(ab) m the same equations hold for y and the data minus m, whatever m
is, since sqrt(ab) m itself moves as beta / 2 times itself. So data are centred at their mean without loss.
"""
