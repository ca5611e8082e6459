"""`profit llamafactory train`: LLaMA-Factory's own training command with the selective loss."""

import typer


def llamafactory_command(context: typer.Context) -> int:
    """Run LLaMA-Factory's train with a token objective: `train config.yaml [key=value ...]`, as its own command does.

    Ours among its keys: prob_threshold, threshold_direction, objective, objective_kwargs, gradient_budget, statistics.
    """
    from profit_sft.integrations.llama_factory import main

    return main(context.args)
