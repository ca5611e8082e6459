"""One training run: settings, trainer, engine, folder."""
