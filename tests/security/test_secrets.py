"""What a run leaves holds no secret of the environment or of the home folder, however
it ends.
"""

from pathlib import Path

import pytest

from tests.commands.call import DIVERGING, TINY, call

SECRETS = (
    *("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD"),
    *("SIGNING_KEY", "GITHUB_PAT", "DB_PWD", "DB_PASS", "SENTRY_DSN"),
)
TAGS = f"tags=[{','.join('s3cr3t-of-' + name.lower() for name in SECRETS)}]"


FILES = {
    *("config.yaml", "results.json", "predictions.parquet", "metrics.csv", "student", "teacher"),
}


@pytest.mark.parametrize(("words", "code"), [((), 0), (DIVERGING, 1)], ids=["finished", "failed"])
def test_no_secret_gets_into_what_a_run_leaves_and_says(
    words: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "s3cr3t-of-" + name.lower())
    (tmp_path / ".netrc").write_text(
        "machine api.wandb.ai login user password s3cr3t-of-home\n", encoding="utf-8"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    loggers = ("logger=[csv,wandb,tensorboard,mlflow]", "logger.wandb.mode=offline")
    result = call(*TINY, TAGS, *loggers, *words, "out=run", "stages=stages")
    assert result.code == code, result.err
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert len(files) > 20
    assert not [path for path in files if b"s3cr3t-of-" in path.read_bytes()]
    assert "s3cr3t-of-" not in result.out + result.err
    if code == 0:
        assert result.err == ""
        (line,) = [line for line in result.out.splitlines() if "wandb sync" in line]
        assert "offline" in line
        assert len(list(Path("run/wandb").glob("offline-run-*"))) == 3
        assert result.out.splitlines()[0].startswith("Data: 10 classes")
        assert result.out.splitlines()[-1] == "Everything is in run"
        assert {path.name for path in Path("run").iterdir()} >= FILES
