"""Top-5 agreement with the baseline: a column, a gate, a series of `qharness history`, a limit of `recommend`."""

from harness.figures.ask import Ask, LimitOption, share_of_one
from harness.figures.figure import Figure
from harness.figures.formats import PERCENT
from harness.figures.gate import Gate
from harness.figures.statistic import Items

TOP5 = Figure(
    name="top5",
    group="Top 5",
    heading="Top-5 agreement",
    help="Share of the five likeliest next tokens that both have in common, with its 95% interval.",
    direction="higher",
    format=PERCENT,
    column="top5_fraction",
    interval=True,
    statistic=Items("top5_agreement"),
    gate=Gate("points", default=0.01, says="top-5 agreement with the baseline", usual=False),
    ask=Ask(
        "top-5 agreement",
        LimitOption("min-top5", share_of_one, "SHARE", "Top-5 agreement: 95%.", "≥ {}% top-5 agreement"),
        of_baseline=1,
        of_quality=True,
    ),
)
