# Set-up in two commands: `make demo` and `make test`; each creates what it needs, the first without tools for developers.
# PyTorch for a GPU: make demo TORCH=cu128
VENV := .venv/bin
OUT ?= out/demo
export PYTHONUNBUFFERED = 1

.PHONY: demo test test-kilted lint check docs format bench gpu gpu-kit results parameters locks clean venv venv-demo

venv:
	@tools/make-venv test

venv-demo:
	@tools/make-venv demo

demo: venv-demo
	@$(VENV)/semla demo --out $(OUT) $(ARGS)

# What fails while other tests share the cores runs again, alone and one at a time; what fails then, fails.
test: venv
	@$(VENV)/python -m pytest -n auto -q $(ARGS) || { [ $$? = 1 ] && echo "again, one at a time: what failed beside other tests" && \
	  $(VENV)/python -m pytest -q --last-failed --last-failed-no-failures none $(ARGS); }

# The node on ROS 2 Kilted, which comes as wheels, too: what meets rclpy and the middleware most closely, in a minute.
KILTED_TESTS ?= $(addprefix test/nodes/test_,settings_over_dds.py policy_over_dds.py clock_over_dds.py log_over_dds.py mask_info_over_dds.py)
test-kilted:
	@tools/make-venv kilted
	@.venv-kilted/bin/python -m pytest -n auto -q $(KILTED_TESTS)

lint: venv
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

check: lint docs
	@$(MAKE) test ARGS="--cov=semla_ros --cov-report=term:skip-covered $(ARGS)"

# The pages of docs/ as a site: out/docs/index.html; a broken link or a page that is in no menu is an error.
docs:
	@tools/make-venv docs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --site-dir out/docs

format: venv
	@$(VENV)/ruff format .
	@$(VENV)/ruff check --fix .

bench: venv
	@$(VENV)/semla bench all --out out/bench $(ARGS)

gpu:
	@tools/gpu-run $(ARGS)

gpu-kit:
	@tools/gpu-kit $(ARGS)

results: venv
	@$(VENV)/semla evaluate --benchmark world --seeds 0 1 2 --images 34 --cards --json out/results/results.json --html out/results/report.html --markdown out/results/table.md $(ARGS)
	@{ printf '# Results on the shipped world\n\nWritten by `make results`; docs/evaluation.md says what is compared.\n\n'; \
	  cat out/results/table.md; echo; $(VENV)/python -m bench.goals out/results/results.json; } > docs/results.md

parameters: venv
	@$(VENV)/python -m tools.parameter_tables

locks:
	@tools/lock $(ARGS)

clean:
	rm -rf .venv .venv-kilted .venv-docs .coverage* out build install log *.egg-info
