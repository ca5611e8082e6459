"""Whether a mask helped where a model could do as much of the task: the rule that docs/results/map.md supports.

Two shares place a model and a data set: of problems like the data's, those that the model does not solve in 8 tries;
and of the label tokens, those below 0.1. The figures are those of the map, models of 0.8M parameters on sums.
"""

from dataclasses import dataclass

TRIES = 8  # samples of a problem; none right: out of reach
THRESHOLD = 0.1  # of the map's masks
# Between what the map has: 2 to 9% and 51 to 74% of problems out of reach, 0 to 10% and 57 to 62% of tokens below 0.1.
UNSOLVED_LIMIT = 0.3
BELOW_LIMIT = 0.3


@dataclass(frozen=True, slots=True)
class Region:
    """What was measured in a part of the map, against plain SFT, each at its own best learning rate.

    Attributes:
        conditions: Conditions there.
        ahead: In how many the online mask at 0.1 was shown to have more problems like the data's right.
        behind: In how many fewer.
        fixed_ahead: The same of the mask of the start.
        fixed_behind: And fewer.
        least: Smallest difference of the online mask, points.
        most: The largest.
    """

    conditions: int
    ahead: int
    behind: int
    fixed_ahead: int
    fixed_behind: int
    least: float
    most: float


REGIONS = {
    "new": Region(16, 0, 8, 0, 6, -28.0, 0.8),
    "wording": Region(4, 1, 0, 2, 0, -2.3, 16.0),
    "known": Region(4, 0, 0, 0, 0, -1.5, 2.7),
}
_READINGS = {
    "new": "the data holds something that the model cannot do yet, and a mask hides what it would have to learn: use "
    "plain SFT",
    "wording": "the model can do these problems and would word them otherwise: the mask of the start (profit train "
    "--reference_scores FOLDER) may keep what plain SFT would spoil; an online one may, and may feed on itself",
    "known": "the model can do these problems and mostly says them so: a mask hides little and changes little",
}
# The online mask on conditions that did not make the rule: other seeds, rows and shares of wrong references, and other
# starts, of which one collapsed at a rate that one seed chose; the miss beside it is that at the rate of three.
CHECKED, AGREED, LARGEST_MISS, MISS_OF_THREE = 15, 6, 38.2, 4.3


def region_of(unsolved_share: float, below_share: float) -> str:
    """Return the name of the part of the map.

    Args:
        unsolved_share: Share of held-out problems like the data's of which the model has none of 8 samples right.
        below_share: Share of the label tokens to which it gives a probability below 0.1.

    Raises:
        ValueError: `unsolved_share` is no share.
    """
    if not 0.0 <= unsolved_share <= 1.0:  # also refuses NaN
        raise ValueError(f"unsolved_share is {unsolved_share}, it must lie in [0, 1].")
    if unsolved_share >= UNSOLVED_LIMIT:
        return "new"
    return "wording" if below_share >= BELOW_LIMIT else "known"


def on_the_map(unsolved_share: float, below_share: float) -> tuple[str, ...]:
    """Say in plain words what was measured there, and how sure that is; arguments as for `region_of`."""
    name = region_of(unsolved_share, below_share)
    region = REGIONS[name]
    return (
        f"The model solves {1 - unsolved_share:.0%} of problems like these within {TRIES} tries, and {below_share:.0%} "
        f"of the label tokens lie below {THRESHOLD:g}. Read with the map: {_READINGS[name]}.",
        f"Measured in such places, {region.conditions} of them, at each objective's best learning rate: the online "
        f"mask ahead of plain SFT in {region.ahead}, behind in {region.behind}, not shown to differ in the others "
        f"({region.least:+.1f} to {region.most:+.1f} points); the mask of the start ahead in {region.fixed_ahead}, "
        f"behind in {region.fixed_behind}.",
        f"The map is of models of 0.8M parameters on sums (docs/results/map.md). Elsewhere the rule named the online "
        f"mask's side in {AGREED} of {CHECKED} conditions; where it did not, the difference was up to {LARGEST_MISS:g} "
        f"points, of runs that collapsed at a learning rate which one seed had chosen ({MISS_OF_THREE:g} at one that "
        "three had). It is a reason for a study, not in place of one.",
    )
