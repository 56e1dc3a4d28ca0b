# The two commands of the README. Everything else is in scripts/.
.PHONY: demo test check clean

demo: ## the paper's programs across a Compose stack, under a matrix of bad links
	@scripts/bootstrap
	@.venv/bin/testbed demo

test: ## the whole suite
	@scripts/bootstrap
	@scripts/test

check: ## ruff, mypy --strict
	@scripts/bootstrap --no-engine
	@scripts/check

clean: ## remove what a killed run may have left on the engine
	@.venv/bin/testbed down --stale
