"""Push a model to the Hugging Face Hub: checked, as one commit, and loaded from there before it says done.

    python recipes/push.py --model runs/quickstart --repo_id USER/quickstart --dry_run
    python recipes/push.py --model runs/quickstart --repo_id USER/quickstart --private --tag v1

The token is that of `hf auth login`, or $HF_TOKEN; it is written nowhere. The model's own code goes with it, so that it
loads where gpt_finetune is not installed: a fresh process without it downloads the commit and compares the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_finetune.config import run
from gpt_finetune.errors import InputError


@dataclass
class PushConfig:
    """Push a model to the Hub.

    Args:
        model: Folder of a run, of a model saved with its tokenizer, of a native export, or of an adapter.
        repo_id: Where to: owner/name. The repository is made if need be.
        private: Make it private; one that exists and is public is refused.
        revision: Branch; it is made if need be.
        tag: New tag for the commit, such as v1.
        license: Licence by its Hub name, such as apache-2.0, for the card.
        message: Of the commit.
        dry_run: Send nothing: list what would go, and load it in a fresh process without gpt_finetune.
        token: Refused: a token belongs neither in a command nor in a file.
    """

    model: str = "runs/quickstart"
    repo_id: str = ""
    private: bool = False
    revision: str = "main"
    tag: str | None = None
    license: str | None = None
    message: str = "Push a model with gpt_finetune"
    dry_run: bool = False
    token: str | None = None


def check(config: PushConfig) -> None:
    """Refuse what cannot work before anything is read or sent."""
    from gpt_finetune.hub.upload import check_name

    if config.token is not None:
        remedy = "Run `hf auth login`, or export HF_TOKEN; revoke this one, for shells keep what was typed"
        raise InputError("token", "…", "a token belongs neither in a command nor in a file", remedy)
    if not config.repo_id:
        raise InputError("repo_id", config.repo_id, "it says where to push to", "Give owner/name")
    check_name(config.repo_id)


def main(config: PushConfig) -> str | None:
    """Run the recipe; returns the commit's id."""
    check(config)
    from gpt_finetune.hub import push, staged, verify

    if config.dry_run:
        with staged(config.model, config.repo_id, config.license) as staging:
            for note in staging.notes:
                print(note)
            for name, size in staging.files.items():
                print(f"{size:>15,}  {name}")
            verify(staging, config.repo_id)
        print("It loads in a fresh process without gpt_finetune. Nothing was sent.")
        return None
    done = push(
        config.model,
        config.repo_id,
        private=config.private,
        revision=config.revision,
        tag=config.tag,
        license=config.license,
        message=config.message,
    )
    size, exact = sum(done.files.values()), done.difference == 0
    print(f"{len(done.files)} files, {size:,} bytes; outputs {'equal to the last bit' if exact else 'within 1e-6'}")
    print(f"done: {done.url}")
    return done.commit


if __name__ == "__main__":
    run(main, PushConfig)
