"""Numbers of the formulas that settings are checked against, without torch."""

LEAST, MOST = 1e-6, 1e3
"""Between which an adaptive KL coefficient stays: from either end it finds back, from 0 or infinity it never would."""
MOST_NATS = 20.0
"""To which log-ratios are cut before they are exponentiated in a metric (as in verl): e^20 is 5e8, so sums stay finite."""
