"""How often a study's verdict is wrong where there is nothing to find, and how often it finds what is there.

Studies are drawn: every problem has a difficulty, every run of a variant an effect of its seed, and every answer is
right or wrong by chance. Each goes through the rule of `profit_sft.study`, that of the methods: the larger p-value of
the sign-flip test over problems and of Student's t over seeds and problems, corrected by Holm.

    python benchmarks/verdicts.py            # false verdicts, then power; about four minutes on one core
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from profit_sft.study.seeds import pooled_seed_variance, seed_comparison
from profit_sft.study.statistics import SIGNIFICANCE, Floats, holm, problem_shares, sign_flip_p_value, strata_of

RESAMPLES = 2000  # of the sign flips; a study has five times as many, which makes a p-value exacter, not smaller
_DIFFICULTY = 1.5  # standard deviation of the problems' difficulty, in logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """Of a drawn study.

    Attributes:
        variants: Variants, the baseline included.
        seeds: Runs of each.
        problems: Problems a task.
        samples: Answers to each by each run.
        tasks: Tasks.
        seed_sd: Standard deviation between the runs of a variant, in points of accuracy.
        baseline_seed_sd: That of the baseline's runs; None: the same.
        taste_sd: How much variants differ in which problems they find hard, in logits; no difference on average.
        differences: True difference of each variant from the baseline in points, from the second on; the rest are 0.
    """

    variants: int = 5
    seeds: int = 3
    problems: int = 400
    samples: int = 1
    tasks: int = 1
    seed_sd: float = 0.0
    baseline_seed_sd: float | None = None
    taste_sd: float = 0.0
    differences: tuple[float, ...] = ()


def draw_study(design: Design, generator: np.random.Generator) -> Floats:
    """Return `(variants, seeds, tasks, problems)`, the mean score of each problem; half are right on average."""
    d = design
    difficulty = generator.normal(0, _DIFFICULTY, (1, 1, d.tasks, d.problems))
    # Points of accuracy to logits: the slope of the mean of expit at 0, where the spread of the logits is this wide.
    spread = np.hypot(_DIFFICULTY, d.taste_sd)
    slope = float(np.mean(_slope(np.random.default_rng(0).normal(0, spread, 20_000))))
    seed_sd = np.full((d.variants, 1, 1, 1), d.seed_sd)
    seed_sd[0] = d.seed_sd if d.baseline_seed_sd is None else d.baseline_seed_sd
    of_runs = generator.normal(0, seed_sd / 100 / slope, (d.variants, d.seeds, 1, 1))
    taste = generator.normal(0, d.taste_sd, (d.variants, 1, d.tasks, d.problems))
    effects = np.zeros((d.variants, 1, 1, 1))
    for index, points in enumerate(d.differences, start=1):
        effects[index] = points / 100 / slope
    chances = expit(difficulty + of_runs + taste + effects)
    return generator.binomial(d.samples, chances) / d.samples


def _slope(logits: Floats) -> Floats:
    p = expit(logits)
    return p * (1 - p)


def shown_of_methods(study: Floats) -> list[bool]:
    """Return for each comparison with the first variant, task by task, whether the methods are shown to differ.

    With several tasks their average comes first, as in a report.
    """
    p_values = []
    for tasks in _outcomes(study.shape[2]):
        scores = study[:, :, tasks].reshape(*study.shape[:2], -1)
        strata = [str(task) for task in tasks for _ in range(study.shape[3])]
        shares = problem_shares(strata_of(strata, len(strata)))
        runs = [dict(enumerate(of_variant)) for of_variant in scores]
        pooled = pooled_seed_variance([{seed: float(run @ shares) for seed, run in of.items()} for of in runs])
        for variant in range(1, len(runs)):
            p_value = seed_comparison(runs[variant], runs[0], pooled, strata=strata).p_value
            assert p_value is not None
            if p_value < SIGNIFICANCE:  # else the larger of the two cannot be either
                differences = scores[variant].mean(axis=0) - scores[0].mean(axis=0)
                p_value = max(p_value, sign_flip_p_value(differences * shares, resamples=RESAMPLES))
            p_values.append(p_value)
    return [value < SIGNIFICANCE for value in holm(p_values)]


def _outcomes(tasks: int) -> list[list[int]]:
    each = [[task] for task in range(tasks)]
    return each if tasks == 1 else [list(range(tasks)), *each]


def found(design: Design, studies: int, *, seed: int = 0) -> Iterator[list[bool]]:
    """Yield `shown_of_methods` of so many drawn studies."""
    for index in range(studies):
        yield shown_of_methods(draw_study(design, np.random.default_rng((seed, index))))


def false_verdict_share(design: Design, studies: int) -> float:
    """Return the share of studies with any verdict, where no variant differs."""
    assert not design.differences
    return float(np.mean([any(shown) for shown in found(design, studies)]))


FALSE_VERDICTS = (
    Design(variants=3),
    Design(variants=12),
    Design(variants=3, seed_sd=4.6),
    Design(seed_sd=4.6),
    Design(variants=12, seed_sd=4.6),
    Design(variants=12, seeds=5, samples=8, seed_sd=5),
    Design(variants=3, tasks=5, seed_sd=4.6),
    Design(variants=12, samples=8, seed_sd=2),
    Design(variants=12, seeds=5, problems=100, samples=8, seed_sd=4, taste_sd=1),
    Design(variants=5, samples=8, seed_sd=2, taste_sd=1.5),
    # What the rule takes for granted does not hold here: the baseline's runs vary more than the others'.
    Design(variants=5, seed_sd=3.5, baseline_seed_sd=7),
    Design(variants=12, seed_sd=3.5, baseline_seed_sd=7),
    Design(variants=12, seed_sd=1.4, baseline_seed_sd=7),
)


def _print_false_verdicts(designs: Sequence[Design], studies: int) -> None:
    print(f"Studies with any false verdict on the methods, of {studies}:\n")
    print("| variants | seeds | tasks | problems | samples | points between seeds | taste, logits | false verdicts |")
    print("|---|---|---|---|---|---|---|---|")
    for d in designs:
        between = f"{d.seed_sd:g}" + ("" if d.baseline_seed_sd is None else f", baseline {d.baseline_seed_sd:g}")
        cells = (d.variants, d.seeds, d.tasks, d.problems, d.samples, between, f"{d.taste_sd:g}")
        print("| " + " | ".join(map(str, cells)) + f" | {false_verdict_share(d, studies):.1%} |", flush=True)


def _print_power(studies: int) -> None:
    print(f"\nPower: one of four variants differs from the baseline; 400 problems, one sample, {studies} studies:\n")
    print("| seeds | points between seeds | 2 points | 5 points | 10 points |")
    print("|---|---|---|---|---|")
    for seeds in (3, 5):
        for seed_sd in (0, 2, 5):
            powers = []
            for points in (2, 5, 10):
                design = Design(seeds=seeds, seed_sd=seed_sd, differences=(points,))
                powers.append(f"{np.mean([shown[0] for shown in found(design, studies)]):.0%}")
            print(f"| {seeds} | {seed_sd} | " + " | ".join(powers) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="Drawn for each figure (default: 1000).")
    studies = parser.parse_args().studies
    _print_false_verdicts(FALSE_VERDICTS, studies)
    _print_power(studies)


if __name__ == "__main__":
    main()
