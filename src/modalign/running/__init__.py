"""The whole job of one run: judge before, train, judge after, compare, report, and a model that loads elsewhere.

    run           what is called (`refine`, `run_recipe`) and what it returns (`Run`)
    ingredients   model, method, pairs, target and tasks, read and checked before anything is computed
    job           the stages, each leaving its part of the run folder
    judging       before, after, the gate, and weights between

A run folder fills as the job goes, and every stage that is complete on disk is read instead of done again, so
`--resume` continues wherever a kill fell:

    recipe.yaml, environment.json   at once
    evaluation/before.json          the initial model, judged
    cache/                          what the frozen networks said
    metrics.jsonl, checkpoints/     training
    model/                          the refined model (safetensors + JSON)
    evaluation.json, features/      before, after, gate, gap, interpolation
    cost.json, report.html
"""

from modalign.running.run import Run, refine, run_recipe

__all__ = ["Run", "refine", "run_recipe"]
