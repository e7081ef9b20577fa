# The two commands of the README: `make play` ends in the playable window, `make test` in the test result.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: play test gifs engines lint clean

play: $(STAMP)
	$(BIN)/farworld play --ckpt minecraft

test: $(STAMP)
	$(BIN)/python -m pytest

# The pictures of the README, made anew when the bundled worlds are; docs/WORLD.txt says which keys are pressed.
gifs: $(STAMP)
	for world in dmlab minecraft; do \
		$(BIN)/farworld play --ckpt $$world --headless --script docs/$$world.txt --save docs/$$world.gif || exit; \
	done

# Real engines and OpenVINO, which the tests use where they are installed; what they need of the system is in .ci/run.
engines: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[engines,openvino]"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy farworld envs train

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $(STAMP)

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) build dist *.egg-info
