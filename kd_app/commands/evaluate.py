"""``kd-evaluate``: measure a run's models again, another model, or a cascade."""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    if config["cascade"] is not None:
        from kd_app.jobs.cascade import evaluate_cascade

        evaluate_cascade(config, trial=trial)
        return
    if config["model"] is not None:
        from kd_app.jobs.evaluate_model import evaluate_model

        evaluate_model(config, trial=trial)
        return
    from kd_app.jobs.evaluate import evaluate

    evaluate(config, trial=trial)


def main() -> NoReturn:
    """Run kd-evaluate."""
    run(_run_task, "evaluate")


if __name__ == "__main__":
    main()
